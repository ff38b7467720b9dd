from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Picture(_message.Message):
    __slots__ = ("data", "image_id", "filename")
    DATA_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    image_id: str
    filename: str
    def __init__(self, data: _Optional[bytes] = ..., image_id: _Optional[str] = ..., filename: _Optional[str] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ImageRef(_message.Message):
    __slots__ = ("id", "width", "height", "range")
    ID_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    width: int
    height: int
    range: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, id: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., range: _Optional[_Iterable[float]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ms", "inference_ms", "batch_size")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    inference_ms: float
    batch_size: int
    def __init__(self, queue_ms: _Optional[float] = ..., inference_ms: _Optional[float] = ..., batch_size: _Optional[int] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("image", "model", "version", "store", "top_k", "range")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    image: Picture
    model: str
    version: int
    store: bool
    top_k: int
    range: str
    def __init__(self, image: _Optional[_Union[Picture, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., store: _Optional[bool] = ..., top_k: _Optional[int] = ..., range: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("class_index", "class_name", "confidence")
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    class_index: int
    class_name: str
    confidence: float
    def __init__(self, class_index: _Optional[int] = ..., class_name: _Optional[str] = ..., confidence: _Optional[float] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("id", "model", "image", "predictions", "timing")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: ModelRef
    image: ImageRef
    predictions: _containers.RepeatedCompositeFieldContainer[Score]
    timing: Timing
    def __init__(self, id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., image: _Optional[_Union[ImageRef, _Mapping]] = ..., predictions: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("image", "model", "version", "store", "render", "flips", "probability", "range")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    RENDER_FIELD_NUMBER: _ClassVar[int]
    FLIPS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    image: Picture
    model: str
    version: int
    store: bool
    render: str
    flips: bool
    probability: bool
    range: str
    def __init__(self, image: _Optional[_Union[Picture, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., store: _Optional[bool] = ..., render: _Optional[str] = ..., flips: _Optional[bool] = ..., probability: _Optional[bool] = ..., range: _Optional[str] = ...) -> None: ...

class Area(_message.Message):
    __slots__ = ("class_index", "class_name", "color", "pixels", "share")
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    COLOR_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    class_index: int
    class_name: str
    color: _containers.RepeatedScalarFieldContainer[int]
    pixels: int
    share: float
    def __init__(self, class_index: _Optional[int] = ..., class_name: _Optional[str] = ..., color: _Optional[_Iterable[int]] = ..., pixels: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("id", "model", "image", "classes", "artifacts", "timing", "rendered")
    class ArtifactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: ModelRef
    image: ImageRef
    classes: _containers.RepeatedCompositeFieldContainer[Area]
    artifacts: _containers.ScalarMap[str, str]
    timing: Timing
    rendered: bytes
    def __init__(self, id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., image: _Optional[_Union[ImageRef, _Mapping]] = ..., classes: _Optional[_Iterable[_Union[Area, _Mapping]]] = ..., artifacts: _Optional[_Mapping[str, str]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., rendered: _Optional[bytes] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y", "label")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    label: int
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., label: _Optional[int] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x0", "y0", "x1", "y1")
    X0_FIELD_NUMBER: _ClassVar[int]
    Y0_FIELD_NUMBER: _ClassVar[int]
    X1_FIELD_NUMBER: _ClassVar[int]
    Y1_FIELD_NUMBER: _ClassVar[int]
    x0: float
    y0: float
    x1: float
    y1: float
    def __init__(self, x0: _Optional[float] = ..., y0: _Optional[float] = ..., x1: _Optional[float] = ..., y1: _Optional[float] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("points", "box", "mask_input")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_INPUT_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    box: Box
    mask_input: str
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask_input: _Optional[str] = ...) -> None: ...

class PromptMasksRequest(_message.Message):
    __slots__ = ("image", "model", "version", "store", "prompts", "multimask", "format", "logits", "range")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MULTIMASK_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    image: Picture
    model: str
    version: int
    store: bool
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    multimask: bool
    format: str
    logits: bool
    range: str
    def __init__(self, image: _Optional[_Union[Picture, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., store: _Optional[bool] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., multimask: _Optional[bool] = ..., format: _Optional[str] = ..., logits: _Optional[bool] = ..., range: _Optional[str] = ...) -> None: ...

class Rle(_message.Message):
    __slots__ = ("size", "counts")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    size: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, size: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class CocoRle(_message.Message):
    __slots__ = ("size", "counts")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    size: _containers.RepeatedScalarFieldContainer[int]
    counts: str
    def __init__(self, size: _Optional[_Iterable[int]] = ..., counts: _Optional[str] = ...) -> None: ...

class Polygon(_message.Message):
    __slots__ = ("outer", "holes")
    OUTER_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
    outer: _containers.RepeatedScalarFieldContainer[float]
    holes: _containers.RepeatedCompositeFieldContainer[Ring]
    def __init__(self, outer: _Optional[_Iterable[float]] = ..., holes: _Optional[_Iterable[_Union[Ring, _Mapping]]] = ...) -> None: ...

class Ring(_message.Message):
    __slots__ = ("coordinates",)
    COORDINATES_FIELD_NUMBER: _ClassVar[int]
    coordinates: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, coordinates: _Optional[_Iterable[float]] = ...) -> None: ...

class Polygons(_message.Message):
    __slots__ = ("polygons",)
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    polygons: _containers.RepeatedCompositeFieldContainer[Polygon]
    def __init__(self, polygons: _Optional[_Iterable[_Union[Polygon, _Mapping]]] = ...) -> None: ...

class Segmentation(_message.Message):
    __slots__ = ("rle", "coco", "polygons", "geojson", "png")
    RLE_FIELD_NUMBER: _ClassVar[int]
    COCO_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    GEOJSON_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    rle: Rle
    coco: CocoRle
    polygons: Polygons
    geojson: _struct_pb2.Struct
    png: str
    def __init__(self, rle: _Optional[_Union[Rle, _Mapping]] = ..., coco: _Optional[_Union[CocoRle, _Mapping]] = ..., polygons: _Optional[_Union[Polygons, _Mapping]] = ..., geojson: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., png: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("cached", "encode_ms")
    CACHED_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    cached: bool
    encode_ms: float
    def __init__(self, cached: _Optional[bool] = ..., encode_ms: _Optional[float] = ...) -> None: ...

class PromptMask(_message.Message):
    __slots__ = ("id", "segmentation", "predicted_iou", "stability_score", "area", "bbox")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    id: str
    segmentation: Segmentation
    predicted_iou: float
    stability_score: float
    area: int
    bbox: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., segmentation: _Optional[_Union[Segmentation, _Mapping]] = ..., predicted_iou: _Optional[float] = ..., stability_score: _Optional[float] = ..., area: _Optional[int] = ..., bbox: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptResult(_message.Message):
    __slots__ = ("prompt", "masks")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    prompt: int
    masks: _containers.RepeatedCompositeFieldContainer[PromptMask]
    def __init__(self, prompt: _Optional[int] = ..., masks: _Optional[_Iterable[_Union[PromptMask, _Mapping]]] = ...) -> None: ...

class PromptMasksResponse(_message.Message):
    __slots__ = ("id", "model", "image", "results", "embedding", "timing")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: ModelRef
    image: ImageRef
    results: _containers.RepeatedCompositeFieldContainer[PromptResult]
    embedding: Embedding
    timing: Timing
    def __init__(self, id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., image: _Optional[_Union[ImageRef, _Mapping]] = ..., results: _Optional[_Iterable[_Union[PromptResult, _Mapping]]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class AutoMasksRequest(_message.Message):
    __slots__ = ("image", "model", "version", "store", "format", "preset", "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor", "min_mask_region_area", "range")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    POINTS_PER_SIDE_FIELD_NUMBER: _ClassVar[int]
    POINTS_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    PRED_IOU_THRESH_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_THRESH_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BOX_NMS_THRESH_FIELD_NUMBER: _ClassVar[int]
    CROP_N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CROP_NMS_THRESH_FIELD_NUMBER: _ClassVar[int]
    CROP_OVERLAP_RATIO_FIELD_NUMBER: _ClassVar[int]
    CROP_N_POINTS_DOWNSCALE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    MIN_MASK_REGION_AREA_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    image: Picture
    model: str
    version: int
    store: bool
    format: str
    preset: str
    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    range: str
    def __init__(self, image: _Optional[_Union[Picture, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., store: _Optional[bool] = ..., format: _Optional[str] = ..., preset: _Optional[str] = ..., points_per_side: _Optional[int] = ..., points_per_batch: _Optional[int] = ..., pred_iou_thresh: _Optional[float] = ..., stability_score_thresh: _Optional[float] = ..., stability_score_offset: _Optional[float] = ..., box_nms_thresh: _Optional[float] = ..., crop_n_layers: _Optional[int] = ..., crop_nms_thresh: _Optional[float] = ..., crop_overlap_ratio: _Optional[float] = ..., crop_n_points_downscale_factor: _Optional[int] = ..., min_mask_region_area: _Optional[int] = ..., range: _Optional[str] = ...) -> None: ...

class AutoMask(_message.Message):
    __slots__ = ("segmentation", "predicted_iou", "stability_score", "area", "bbox", "point_coords", "crop_box")
    SEGMENTATION_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    POINT_COORDS_FIELD_NUMBER: _ClassVar[int]
    CROP_BOX_FIELD_NUMBER: _ClassVar[int]
    segmentation: Segmentation
    predicted_iou: float
    stability_score: float
    area: int
    bbox: _containers.RepeatedScalarFieldContainer[int]
    point_coords: _containers.RepeatedCompositeFieldContainer[Point2]
    crop_box: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segmentation: _Optional[_Union[Segmentation, _Mapping]] = ..., predicted_iou: _Optional[float] = ..., stability_score: _Optional[float] = ..., area: _Optional[int] = ..., bbox: _Optional[_Iterable[int]] = ..., point_coords: _Optional[_Iterable[_Union[Point2, _Mapping]]] = ..., crop_box: _Optional[_Iterable[int]] = ...) -> None: ...

class Point2(_message.Message):
    __slots__ = ("x", "y")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ...) -> None: ...

class AutoMasksEvent(_message.Message):
    __slots__ = ("found", "dropped", "finished", "progress")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    found: FoundMask
    dropped: DroppedMask
    finished: AutoMasksResponse
    progress: float
    def __init__(self, found: _Optional[_Union[FoundMask, _Mapping]] = ..., dropped: _Optional[_Union[DroppedMask, _Mapping]] = ..., finished: _Optional[_Union[AutoMasksResponse, _Mapping]] = ..., progress: _Optional[float] = ...) -> None: ...

class FoundMask(_message.Message):
    __slots__ = ("number", "mask")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    number: int
    mask: AutoMask
    def __init__(self, number: _Optional[int] = ..., mask: _Optional[_Union[AutoMask, _Mapping]] = ...) -> None: ...

class DroppedMask(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class AutoMasksResponse(_message.Message):
    __slots__ = ("id", "model", "image", "masks", "parameters", "artifacts", "embedding", "timing")
    class ArtifactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: ModelRef
    image: ImageRef
    masks: _containers.RepeatedCompositeFieldContainer[AutoMask]
    parameters: _struct_pb2.Struct
    artifacts: _containers.ScalarMap[str, str]
    embedding: Embedding
    timing: Timing
    def __init__(self, id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., image: _Optional[_Union[ImageRef, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[AutoMask, _Mapping]]] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., artifacts: _Optional[_Mapping[str, str]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class CutoutsRequest(_message.Message):
    __slots__ = ("image", "model", "version", "store", "prompts", "multimask", "min_pixels", "padding_px", "feather_px", "frame", "limit", "preset", "points_per_side", "points_per_batch", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio", "crop_n_points_downscale_factor", "min_mask_region_area", "range")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MULTIMASK_FIELD_NUMBER: _ClassVar[int]
    MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    PADDING_PX_FIELD_NUMBER: _ClassVar[int]
    FEATHER_PX_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    POINTS_PER_SIDE_FIELD_NUMBER: _ClassVar[int]
    POINTS_PER_BATCH_FIELD_NUMBER: _ClassVar[int]
    PRED_IOU_THRESH_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_THRESH_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    BOX_NMS_THRESH_FIELD_NUMBER: _ClassVar[int]
    CROP_N_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CROP_NMS_THRESH_FIELD_NUMBER: _ClassVar[int]
    CROP_OVERLAP_RATIO_FIELD_NUMBER: _ClassVar[int]
    CROP_N_POINTS_DOWNSCALE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    MIN_MASK_REGION_AREA_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    image: Picture
    model: str
    version: int
    store: bool
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    multimask: bool
    min_pixels: int
    padding_px: int
    feather_px: float
    frame: str
    limit: int
    preset: str
    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    range: str
    def __init__(self, image: _Optional[_Union[Picture, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., store: _Optional[bool] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., multimask: _Optional[bool] = ..., min_pixels: _Optional[int] = ..., padding_px: _Optional[int] = ..., feather_px: _Optional[float] = ..., frame: _Optional[str] = ..., limit: _Optional[int] = ..., preset: _Optional[str] = ..., points_per_side: _Optional[int] = ..., points_per_batch: _Optional[int] = ..., pred_iou_thresh: _Optional[float] = ..., stability_score_thresh: _Optional[float] = ..., stability_score_offset: _Optional[float] = ..., box_nms_thresh: _Optional[float] = ..., crop_n_layers: _Optional[int] = ..., crop_nms_thresh: _Optional[float] = ..., crop_overlap_ratio: _Optional[float] = ..., crop_n_points_downscale_factor: _Optional[int] = ..., min_mask_region_area: _Optional[int] = ..., range: _Optional[str] = ...) -> None: ...

class Cutout(_message.Message):
    __slots__ = ("id", "url", "prompt", "bbox", "width", "height", "area", "predicted_iou", "stability_score", "png")
    ID_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    id: str
    url: str
    prompt: int
    bbox: _containers.RepeatedScalarFieldContainer[int]
    width: int
    height: int
    area: int
    predicted_iou: float
    stability_score: float
    png: bytes
    def __init__(self, id: _Optional[str] = ..., url: _Optional[str] = ..., prompt: _Optional[int] = ..., bbox: _Optional[_Iterable[int]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., area: _Optional[int] = ..., predicted_iou: _Optional[float] = ..., stability_score: _Optional[float] = ..., png: _Optional[bytes] = ...) -> None: ...

class CutoutsResponse(_message.Message):
    __slots__ = ("id", "model", "image", "cutouts", "embedding", "timing")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CUTOUTS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: ModelRef
    image: ImageRef
    cutouts: _containers.RepeatedCompositeFieldContainer[Cutout]
    embedding: Embedding
    timing: Timing
    def __init__(self, id: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., image: _Optional[_Union[ImageRef, _Mapping]] = ..., cutouts: _Optional[_Iterable[_Union[Cutout, _Mapping]]] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("classify", "segment", "masks", "auto_masks", "cutouts", "priority", "timeout_s", "webhook", "idempotency_key")
    CLASSIFY_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    AUTO_MASKS_FIELD_NUMBER: _ClassVar[int]
    CUTOUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    classify: ClassifyRequest
    segment: SegmentRequest
    masks: PromptMasksRequest
    auto_masks: AutoMasksRequest
    cutouts: CutoutsRequest
    priority: int
    timeout_s: float
    webhook: str
    idempotency_key: str
    def __init__(self, classify: _Optional[_Union[ClassifyRequest, _Mapping]] = ..., segment: _Optional[_Union[SegmentRequest, _Mapping]] = ..., masks: _Optional[_Union[PromptMasksRequest, _Mapping]] = ..., auto_masks: _Optional[_Union[AutoMasksRequest, _Mapping]] = ..., cutouts: _Optional[_Union[CutoutsRequest, _Mapping]] = ..., priority: _Optional[int] = ..., timeout_s: _Optional[float] = ..., webhook: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job_id", "replayed")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    replayed: bool
    def __init__(self, job_id: _Optional[str] = ..., replayed: _Optional[bool] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("state", "kind", "page", "limit")
    STATE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    state: str
    kind: str
    page: int
    limit: int
    def __init__(self, state: _Optional[str] = ..., kind: _Optional[str] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("items", "total", "page", "limit")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Job]
    total: int
    page: int
    limit: int
    def __init__(self, items: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., total: _Optional[int] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class JobCounts(_message.Message):
    __slots__ = ("total", "done", "failed", "running")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    total: int
    done: int
    failed: int
    running: int
    def __init__(self, total: _Optional[int] = ..., done: _Optional[int] = ..., failed: _Optional[int] = ..., running: _Optional[int] = ...) -> None: ...

class JobWebhook(_message.Message):
    __slots__ = ("url", "state", "tries")
    URL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    url: str
    state: str
    tries: int
    def __init__(self, url: _Optional[str] = ..., state: _Optional[str] = ..., tries: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "kind", "operation", "state", "progress", "counts", "images_per_s", "time_left_s", "parameters", "store", "priority", "timeout_s", "items_at_once", "attempts", "error", "webhook", "created_at", "started_at", "finished_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_PER_S_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    ITEMS_AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    operation: str
    state: str
    progress: float
    counts: JobCounts
    images_per_s: float
    time_left_s: float
    parameters: _struct_pb2.Struct
    store: bool
    priority: int
    timeout_s: float
    items_at_once: int
    attempts: int
    error: JobError
    webhook: JobWebhook
    created_at: str
    started_at: str
    finished_at: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., operation: _Optional[str] = ..., state: _Optional[str] = ..., progress: _Optional[float] = ..., counts: _Optional[_Union[JobCounts, _Mapping]] = ..., images_per_s: _Optional[float] = ..., time_left_s: _Optional[float] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., store: _Optional[bool] = ..., priority: _Optional[int] = ..., timeout_s: _Optional[float] = ..., items_at_once: _Optional[int] = ..., attempts: _Optional[int] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., webhook: _Optional[_Union[JobWebhook, _Mapping]] = ..., created_at: _Optional[str] = ..., started_at: _Optional[str] = ..., finished_at: _Optional[str] = ...) -> None: ...

class ListJobItemsRequest(_message.Message):
    __slots__ = ("id", "state", "page", "limit")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    page: int
    limit: int
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class JobItem(_message.Message):
    __slots__ = ("position", "state", "filename", "image_id", "prediction_id", "attempts", "error", "result", "started_at", "finished_at")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    position: int
    state: str
    filename: str
    image_id: str
    prediction_id: str
    attempts: int
    error: JobError
    result: _struct_pb2.Struct
    started_at: str
    finished_at: str
    def __init__(self, position: _Optional[int] = ..., state: _Optional[str] = ..., filename: _Optional[str] = ..., image_id: _Optional[str] = ..., prediction_id: _Optional[str] = ..., attempts: _Optional[int] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., result: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., started_at: _Optional[str] = ..., finished_at: _Optional[str] = ...) -> None: ...

class ListJobItemsResponse(_message.Message):
    __slots__ = ("items", "total", "page", "limit")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[JobItem]
    total: int
    page: int
    limit: int
    def __init__(self, items: _Optional[_Iterable[_Union[JobItem, _Mapping]]] = ..., total: _Optional[int] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "after")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    id: str
    after: int
    def __init__(self, id: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("number", "kind", "data")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    data: _struct_pb2.Struct
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., data: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, items: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("process_id", "host", "version", "state", "reason", "memory_bytes")
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    process_id: str
    host: str
    version: int
    state: str
    reason: str
    memory_bytes: int
    def __init__(self, process_id: _Optional[str] = ..., host: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "active", "digest", "bytes", "metrics", "lineage", "created_at", "disabled_reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    DISABLED_REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    active: bool
    digest: str
    bytes: int
    metrics: _struct_pb2.Struct
    lineage: _struct_pb2.Struct
    created_at: str
    disabled_reason: str
    def __init__(self, version: _Optional[int] = ..., active: _Optional[bool] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ..., metrics: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., lineage: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., created_at: _Optional[str] = ..., disabled_reason: _Optional[str] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "task", "version", "state", "reason", "desired", "memory_bytes", "weights", "licence", "source", "precision", "classes", "counters", "replicas", "versions")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    task: str
    version: int
    state: str
    reason: str
    desired: str
    memory_bytes: int
    weights: str
    licence: str
    source: str
    precision: str
    classes: int
    counters: _containers.ScalarMap[str, int]
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    def __init__(self, name: _Optional[str] = ..., task: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., desired: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., weights: _Optional[str] = ..., licence: _Optional[str] = ..., source: _Optional[str] = ..., precision: _Optional[str] = ..., classes: _Optional[int] = ..., counters: _Optional[_Mapping[str, int]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ...) -> None: ...

class GetArtifactRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ArtifactChunk(_message.Message):
    __slots__ = ("data", "mime_type", "bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    MIME_TYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    mime_type: str
    bytes: int
    def __init__(self, data: _Optional[bytes] = ..., mime_type: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...
