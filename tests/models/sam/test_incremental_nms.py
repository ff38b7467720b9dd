"""What those who watch automatic masks are told: at every moment, what would be left of the candidates so far."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.masks.predicted_masks import AutoMask
from models.masks.rle import encode
from models.sam.auto_masks import Candidate, Crop, IncrementalNms, best_of_crop
from models.sam.auto_options import AutoOptions

SIDE_PX = (40, 60)
CROPS: list[Crop] = [(0, 0, 60, 40), (0, 0, 30, 40)]

corner = st.integers(0, 20)
side = st.integers(1, 9)


@st.composite
def candidate(draw: st.DrawFn, width: int) -> Candidate:
    x0, y0 = draw(st.integers(0, width - 10)), draw(corner)
    mask = np.zeros((40, width), np.bool_)
    mask[y0 : y0 + draw(side), x0 : x0 + draw(side)] = True
    rle = encode(mask)
    iou = draw(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9]))
    return Candidate(rle, rle.box_xyxy, iou, 0.9, (float(x0), float(y0)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_stands_is_the_best_of_what_came(data: st.DataObject) -> None:
    options = AutoOptions()
    nms = IncrementalNms(SIDE_PX, options)
    stands: dict[int, AutoMask] = {}
    numbers: set[int] = set()
    for crop in CROPS:
        width = crop[2] - crop[0]
        so_far: list[Candidate] = []
        earlier = dict(stands)
        for chunk in data.draw(st.lists(st.lists(candidate(width), max_size=4), max_size=5)):
            so_far += chunk
            found, dropped = nms.add(crop, chunk)
            for number in dropped:
                del stands[number]  # KeyError for what was never found
            for number, mask in found:
                assert number not in numbers
                numbers.add(number)
                stands[number] = mask
            now = [mask for number, mask in stands.items() if number not in earlier]
            wanted = best_of_crop(so_far, crop, SIDE_PX, options)
            assert sorted(map(repr, now)) == sorted(map(repr, wanted))
        assert set(earlier) <= set(stands)  # of an earlier crop nothing is taken back
