"""Figures: every point where it belongs, and text that neither runs over its edge nor into other text."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from epan.report import draw, figures_kernels, figures_lengths, figures_training
from epan.report.figures_training import BINS, bandwidth_note
from epan.report.records import find
from epan.report.summary import Setting, summarise

LONG = {"learning_rate": 0.0012345, "final_learning_rate": 0.000056789, "weight_decay": 0.123}
CROWDED = {8: 1.0, 16: 1.0, 30: 0.9, 32: 0.9, 33: 0.8, 128: 0.0004}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Figure, str]]]:
    """Every finished figure, drawn, with its caption; a warning of the layout is an error."""
    caught: list[tuple[Figure, str]] = []

    def finish(figure: Figure, name: str, title: str, caption: str, *rest: Any, **options: Any) -> draw.Picture:
        figure.draw_without_rendering()
        caught.append((figure, caption))
        return draw.Picture(name, title, caption, "", b"", b"")

    for module in (figures_kernels, figures_lengths, figures_training):
        monkeypatch.setattr(module, "finish", finish)
    with matplotlib.rc_context(draw.RC), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield caught


def _setting(folder: Path) -> Setting:
    return summarise(find(folder)).settings[0]


def _long(make_run: Any, folder: Path, lengths: dict[int, float] | None = None, methods: int = 3) -> Setting:
    for index in range(methods):
        optimizer = {key: value * (1 + index) for key, value in LONG.items()}
        for kernel, rule in (({"name": "polynomial", "order": 5}, "anchored"), ("epanechnikov", "fixed")):
            make_run(
                folder / f"{index}{rule}",
                kernel=kernel,
                normalization=rule,
                accuracies=lengths or CROWDED,
                training={"optimizer": optimizer},
                empty_rows=0.1,
            )
    return _setting(folder)


def _apart(boxes: list[Bbox]) -> bool:
    return not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def _inside(figure: Figure, box: Bbox) -> bool:
    width, height = figure.bbox.width, figure.bbox.height
    return box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1


def _check_text(figure: Figure) -> None:
    """Tick labels apart, and all text inside the figure."""
    (axes,) = figure.axes
    for axis in (axes.xaxis, axes.yaxis):
        labels = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
        low, high = sorted(axis.get_view_interval())
        shown = [label for label, place in zip(labels, axis.get_majorticklocs(), strict=False) if low <= place <= high]
        assert _apart([label.get_window_extent() for label in shown]), [label.get_text() for label in shown]
        for label in [*shown, axis.label]:
            assert not label.get_text() or _inside(figure, label.get_window_extent()), label.get_text()
    if axes.get_legend() is not None:
        texts = [text.get_window_extent() for text in axes.get_legend().get_texts()]
        assert all(_inside(figure, box) for box in texts)
        assert _apart(texts)
    assert axes.bbox.height > 100


@pytest.mark.parametrize("lengths", [CROWDED, {16: 0.5}, {16: 0.5, 32: 0.2}])
def test_long_names_and_close_lengths_leave_figures_readable(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]], lengths: dict[int, float]
) -> None:
    setting = _long(make_run, tmp_path, lengths)
    for make in (
        figures_lengths.heat_map,
        figures_lengths.accuracy,
        figures_lengths.support,
        figures_lengths.density,
        figures_lengths.empty_rows,
        figures_training.loss,
        figures_training.training_support,
    ):
        make(setting, "", tmp_path)
    figures_training.bandwidths(setting, "", tmp_path)
    figures_kernels.weights([setting], tmp_path)
    assert len(figures) == 12
    for figure, _ in figures:
        _check_text(figure)


def test_lengths_that_matter_keep_their_tick(make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]) -> None:
    figures_lengths.accuracy(_long(make_run, tmp_path), "", tmp_path)
    (axes,) = figures[0][0].axes
    assert [int(place) for place in axes.get_xticks()] == [8, 16, 32, 128]


@pytest.mark.parametrize(
    ("low", "high", "scale"), [(8.1, 9.7, "linear"), (2.1, 6.5, "log"), (1.0, 70.0, "log"), (0.003, 5e4, "log")]
)
def test_every_value_axis_has_several_ticks(low: float, high: float, scale: str) -> None:
    with matplotlib.rc_context(draw.RC):
        figure, axes = draw.panel()
        axes.plot([0, 1], [low, high])
        draw.value_axis(axes, lambda value: f"{value:.4g}")
        figure.draw_without_rendering()
        assert axes.get_yscale() == scale
        bottom, top = axes.get_ylim()
        assert 3 <= sum(bottom <= tick <= top for tick in axes.get_yticks()) <= 9


def test_points_of_a_short_record_stand_at_their_steps(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]
) -> None:
    make_run(tmp_path / "a", steps=300)
    make_run(tmp_path / "b", steps=300, seed=1)
    setting = _setting(tmp_path)
    figures_training.loss(setting, "", tmp_path)
    (figure, caption), first = figures[0], [run.steps for run in setting.runs]
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == list(range(0, 301, 10))
    assert list(line.get_ydata()) == pytest.approx(
        [fmean(x["loss"] for x in pair) for pair in zip(*first, strict=True)]
    )
    assert "Each point is one logged step." in caption


def test_points_of_a_long_record_are_means_at_the_mean_step(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]
) -> None:
    make_run(tmp_path / "a", steps=20 * BINS - 10)
    setting = _setting(tmp_path)
    figures_training.loss(setting, "", tmp_path)
    (figure, caption), steps = figures[0], setting.runs[0].steps
    (line,) = figure.axes[0].get_lines()
    assert list(line.get_xdata()) == [fmean(pair) for pair in zip(*[iter(x["step"] for x in steps)] * 2, strict=True)]
    assert line.get_ydata()[3] == pytest.approx(fmean(x["loss"] for x in steps[6:8]))
    assert "Each point is the mean of 2 logged steps." in caption


def test_a_point_holds_every_run_that_came_so_far(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]
) -> None:
    make_run(tmp_path / "a", steps=300)
    make_run(tmp_path / "b", steps=300, seed=1, log_every=15)
    make_run(tmp_path / "c", steps=300, seed=2, until=120)
    figures_training.loss(_setting(tmp_path), "", tmp_path)
    (line,) = figures[0][0].axes[0].get_lines()
    assert list(line.get_xdata()) == list(range(0, 301, 30))


def test_a_repeated_run_draws_no_band(make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    figures_training.loss(_setting(tmp_path), "", tmp_path)
    assert "seed" not in figures[0][1]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"persistent_kernel": "gaussian"}] * 2, "the persistent memory is Softmax (Gaussian) in every run."),
        (
            [{"persistent_kernel": "gaussian"}, {"persistent_kernel": "biweight"}],
            "the persistent memory is Softmax (Gaussian) with Biweight, Biweight with Triweight.",
        ),
        ([{"persistent_kernel": "biweight"}, {"persistent_kernel": "triweight"}], None),
        ([{}, {}], "which kernel the persistent memory has is not recorded."),
    ],
)
def test_the_kernel_of_a_persistent_memory_is_named(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]], models: list[dict[str, Any]], said: str | None
) -> None:
    for kernel, model in zip(("biweight", "triweight"), models, strict=True):
        make_run(tmp_path / kernel, kernel=kernel, model=model)
    pictures = figures_training.bandwidths(_setting(tmp_path), "", tmp_path)
    for picture in pictures:
        own = "persistent" in picture.title
        assert ("Colours stand for" in picture.caption) == (own and said is not None)
        assert not own or said is None or said in picture.caption


def test_the_note_on_bandwidths_says_what_holds_for_each_rule(make_run: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "a", model={"persistent_normalization": "adaptive"})
    assert "adaptive: as far as makes the weights sum to one" in bandwidth_note(_setting(tmp_path))
    assert "h = √(2n/β)" not in bandwidth_note(_setting(tmp_path))
    make_run(tmp_path / "b", kernel="epanechnikov", normalization="fixed")
    make_run(tmp_path / "c", kernel="epanechnikov", normalization="anchored")
    note = bandwidth_note(_setting(tmp_path))
    assert "fixed: up to h = √(2n/β), the same for every query" in note
    assert "anchored: up to h = √(d² + 2n/β)" in note


def test_words_longer_than_the_room_are_broken() -> None:
    lines = draw.wrapped("Triweight · final_learning_rate=0.00001, batch=2", 60.0, 8.0).split("\n")
    assert "".join(lines).replace(" ", "") == "Triweight·final_learning_rate=0.00001,batch=2"
    assert max(draw.text_width(line, 8.0) for line in lines) <= 60.0


def test_losses_of_different_kinds_are_not_compared(
    make_run: Any, tmp_path: Path, figures: list[tuple[Figure, str]]
) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "same", training={"loss": "gaussian"})
    setting = _setting(tmp_path)
    assert len(setting.methods) == 1
    figures_training.loss(setting, "", tmp_path)
    assert figures[-1][0].axes[0].get_ylabel() == "training loss (nats)"
    make_run(tmp_path / "b", training={"loss": "biweight"})
    make_run(tmp_path / "c", training={"loss": {"name": "polynomial", "order": 5}})
    setting = _setting(tmp_path)
    kinds = {name.partition(" · ")[2] for name in (method.name for method in setting.methods)}
    assert kinds == {"loss=gaussian", "loss=biweight", "loss=polynomial(order=5)"}
    figures_training.loss(setting, "", tmp_path)
    assert figures[-1][0].axes[0].get_ylabel() == "training loss"
    assert "say nothing about each other" in figures[-1][1]
