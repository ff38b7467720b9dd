"""Weights into networks: published, random and of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from ekiben.errors import BadInput  # noqa: E402
from export import recipe  # noqa: E402
from export.recipe import Recipe, images  # noqa: E402
from export.zoo import ZOO  # noqa: E402

EFFICIENTNET, DEEPLAB = ZOO["efficientnet_b0"], ZOO["deeplabv3_resnet50"]


def test_random_weights_are_those_of_their_seed(efficientnet: Recipe) -> None:
    again, other = recipe.random(EFFICIENTNET, 0), recipe.random(EFFICIENTNET, 1)
    assert str(again.weights) == "random (seed 0)"
    kernel = "features.0.0.weight"
    assert torch.equal(efficientnet.network.state_dict()[kernel], again.network.state_dict()[kernel])
    assert not torch.equal(efficientnet.network.state_dict()[kernel], other.network.state_dict()[kernel])


@pytest.mark.parametrize("name", ["efficientnet", "deeplab"])
def test_random_weights_give_sane_answers(name: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(name).network
    pixels = images(3, 64, 64, seed=3)
    with torch.inference_mode():
        logits = network(pixels)
        exact = network.double()(pixels.double()).float()
        network.float()
    assert torch.isfinite(logits).all()
    assert 0.1 < logits.std() < 10
    # What images change is far above what rounding changes.
    between = logits.std(dim=0).mean()
    assert between > 0.003
    assert between > 1000 * (logits - exact).abs().max()


def test_a_published_classifier_is_torchvisions(efficientnet: Recipe, tmp_path: Path) -> None:
    from torchvision.models import efficientnet_b0

    file = tmp_path / "published.pth"
    torch.save(efficientnet.network.state_dict(), file)
    reference = efficientnet_b0(weights=None)
    reference.load_state_dict(torch.load(file, weights_only=True), strict=True)
    made = recipe.published(EFFICIENTNET, file)
    pixels = images(2, 224, 224, seed=1)
    with torch.inference_mode():
        assert torch.equal(made.network(pixels), reference.eval()(pixels))
    assert (made.weights.kind, made.weights.detail) == ("published", "efficientnet_b0_rwightman-7f5810bc.pth")
    assert made.weights.sha256 is not None


def test_a_published_segmenter_is_torchvisions_main_output(deeplab: Recipe, tmp_path: Path) -> None:
    from torchvision.models.segmentation import deeplabv3_resnet50

    # As published: with the auxiliary head, which torchvision's own network needs to load strictly.
    reference = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
    reference.load_state_dict(deeplab.network.state_dict(), strict=False)
    file = tmp_path / "published.pth"
    torch.save(reference.state_dict(), file)
    assert any(name.startswith("aux_classifier.") for name in reference.state_dict())
    made = recipe.published(DEEPLAB, file)
    pixels = images(1, 72, 104, seed=1)
    with torch.inference_mode():
        assert torch.equal(made.network(pixels), reference.eval()(pixels)["out"])


def test_a_checkpoint_is_read_bare_or_wrapped(tmp_path: Path) -> None:
    labels = ("cat", "dog", "bird")
    trained = recipe.random(EFFICIENTNET, 5, labels)
    state = trained.network.state_dict()
    parallel = {f"module.{name}": value for name, value in state.items()}
    file, pixels = tmp_path / "mine.pth", images(1, 224, 224, seed=1)
    for saved in (state, {"state_dict": state, "epoch": 3}, {"model": state}, {"state_dict": parallel}):
        torch.save(saved, file)
        made = recipe.checkpoint(EFFICIENTNET, file, labels)
        assert (made.labels, made.weights.kind, made.weights.detail) == (labels, "checkpoint", "mine.pth")
        with torch.inference_mode():
            assert torch.equal(made.network(pixels), trained.network(pixels))


def test_wrong_checkpoints_say_what_does_not_fit(efficientnet: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    state = dict(efficientnet.network.state_dict())

    def refusal(saved: object, labels: tuple[str, ...] | None = None) -> str:
        torch.save(saved, file)
        with pytest.raises(BadInput) as refused:
            recipe.checkpoint(EFFICIENTNET, file, labels)
        assert "\n" not in refused.value.message
        return refused.value.message

    assert "the weights have 1000 classes, but there are 2 labels; give --labels with 1000" in refusal(
        state, ("a", "b")
    )
    three = recipe.random(EFFICIENTNET, 0, ("a", "b", "c")).network.state_dict()
    assert "the weights have 3 classes, but there are 1000 labels; give --labels with 3" in refusal(three)
    lacking = {name: value for name, value in state.items() if not name.startswith("features.0.0")}
    assert "does not fit the network: missing features.0.0.weight" in refusal(lacking)
    assert "unexpected extra.weight" in refusal(state | {"extra.weight": torch.zeros(1)})
    crooked = state | {"features.0.0.weight": torch.zeros(32, 3, 5, 5)}
    assert "features.0.0.weight is [32, 3, 5, 5], not [32, 3, 3, 3]" in refusal(crooked)
    assert "is no checkpoint of efficientnet_b0: it has no classifier.1.weight" in refusal(
        {"conv.weight": torch.zeros(1)}
    )
    assert "holds no state_dict" in refusal({"epoch": 3})
    assert "holds no state_dict" in refusal(torch.zeros(3))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, file)
    with pytest.raises(BadInput, match="cannot be read as a checkpoint of tensors"):
        recipe.checkpoint(EFFICIENTNET, file)
    assert not (tmp_path / "ran").exists()
    file.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(BadInput, match="cannot be read as a checkpoint of tensors"):
        recipe.checkpoint(EFFICIENTNET, file)
    with pytest.raises(BadInput, match=r"missing.pth does not exist"):
        recipe.checkpoint(EFFICIENTNET, tmp_path / "missing.pth")


def test_labels_may_rename_published_classes_but_not_recount_them(efficientnet: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "published.pth"
    torch.save(efficientnet.network.state_dict(), file)
    names = tuple(f"class {index}" for index in range(1000))
    assert recipe.published(replace(EFFICIENTNET), file, names).labels == names
    with pytest.raises(BadInput, match="the weights have 1000 classes, but there are 999 labels"):
        recipe.published(EFFICIENTNET, file, names[1:])
