"""Optimizer steps that do not wait for the host: all that decides about a step is on the device, as one CUDA graph.

A small model needs a few milliseconds for a step on a GPU, less than Python takes to launch its kernels. So data are made on
the device, several steps at a time; learning rate, clipping, loss and whether all of it is finite stay there; and the host
starts the graph of the next steps before it looks at the results of the last ones.

What a step does is that of :meth:`epan.training.engine.Engine.take_step`. Only a number that is not finite is found late: from
then on no step changes anything, until the host has seen it and says where to go on.
"""

from __future__ import annotations

import collections
import contextlib
import math
import time
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from epan.metrics import SupportMeter, next_token_loss
from epan.models import LanguageModel
from epan.tasks import Batch, Sequences
from epan.training.config import RunConfig
from epan.training.evaluation import add_support
from epan.training.exclusive import exclusive
from epan.training.loading import autocast
from epan.training.optimization import learning_rate
from epan.training.stream import step_seed

__all__ = ["RecordingError", "ResidentStep", "Result"]

# Steps that are started before the host looks at their results, at most, in so many seconds if that is fewer (a signal ends
# a run after those that are started), and places for results of steps in flight.
BLOCK, SECONDS, RING = 16, 0.25, 64
# Steps whose data are made at once, as long as they have no more tokens than this.
CHUNK, CHUNK_TOKENS = 16, 1 << 21
# Sequences whose support is measured.
MEASURED = 32
# Streams of steps that are gone.
_free_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


class RecordingError(Exception):
    """Something in the step waits for the device, so that it cannot be part of a CUDA graph; the message is that of CUDA."""


def _gist(message: str) -> str:
    """The first lines of a message: of a compiler's, the first only says that there is one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:3])


class Result(NamedTuple):
    """What one step gave: ``support`` and ``bandwidths`` (per layer and head) of measured steps only."""

    step: int
    loss: float
    norm: float
    support: float | None
    bandwidths: dict[str, list[float]] | None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class _Pending(NamedTuple):
    """Steps in flight: their numbers, where their results are going, and when these are there."""

    steps: list[int]
    results: torch.Tensor
    measured: dict[int, _Measured]
    arrived: torch.cuda.Event | None


class _Measured(NamedTuple):
    names: list[str]
    sums: torch.Tensor
    layers: list[str]
    bandwidths: torch.Tensor


class ResidentStep:
    """The step of one run on one device.

    Parameters
    ----------
    config, task, model: the run; ``lengths`` of its training sequences.
    optimizer: its AdamW, whose state stays where it is: what it holds before the first call, and after each, is that of
        plain steps.
    device: on a GPU the step is recorded; on a CPU, for tests, it is run as it is.
    accumulation: parts that the batch is split into.

    Raises
    ------
    RecordingError: the step cannot be recorded; weights and optimizer are as they were.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Sequences,
        model: LanguageModel,
        optimizer: torch.optim.AdamW,
        lengths: tuple[int, int],
        device: torch.device,
        accumulation: int,
    ) -> None:
        self.config, self.task, self.model, self.optimizer = config, task, model, optimizer
        self.lengths, self.device, self.parts = lengths, device, accumulation
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._on_gpu = device.type == "cuda"
        # Data are made beside the step, on a stream of their own.
        self._stream = self._own_stream()
        self._data_stream = self._own_stream()
        self._generator = torch.Generator(device) if self._on_gpu else None
        self._chunks: collections.deque[tuple[int, Batch, torch.cuda.Event | None]] = collections.deque()
        self._launched = 0
        # Seconds of a step, as they were last.
        self._pace = math.inf
        width = task.sample(config.seed, 0, 1, lengths, device="cpu").tokens.shape[1]
        self._chunk = max(1, min(CHUNK, CHUNK_TOKENS // (config.batch * width)))
        with self._place():
            self._make(width)
            self._warm_up()
            self._step = self._record(self._do)
            self._measure = self._record(self._look)

    # ------------------------------------------------------------------ what is on the device

    def _own_stream(self) -> torch.cuda.Stream | None:
        """A stream that no other step has while this one is there."""
        if not self._on_gpu:
            return None
        free = _free_streams.setdefault(self.device, [])
        # Torch gives out the same few streams again and again, in turn: two runs might have one, and one record the other's work.
        stream = free.pop() if free else torch.cuda.Stream(self.device)
        weakref.finalize(self, free.append, stream)
        return stream

    def _make(self, width: int) -> None:
        config, device = self.config, self.device
        rates = [learning_rate(config.optimizer, step, config.steps) for step in range(config.steps)]
        self._rates = torch.tensor(rates, dtype=torch.float32, device=device)
        self._rate = torch.zeros((), device=device)
        for group in self.optimizer.param_groups:
            group["lr"], group["capturable"] = self._rate, self._on_gpu
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        # 1 from the first step on that is not finite, for which the optimizer then does nothing.
        self._stuck = torch.zeros((), device=device)
        self.optimizer.found_inf = self._stuck  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._results = torch.zeros(RING, 2, device=device)
        self._tokens = torch.zeros(config.batch, width, dtype=torch.int64, device=device)
        self._mask = torch.zeros(config.batch, width, dtype=torch.bool, device=device)
        #: Tokens of a step, with padding.
        self.tokens = config.batch * (width - 1)
        self._loss_of = self._plain_loss
        if config.compile:
            self._loss_of = torch.compile(self._with_own_code(), dynamic=False)

    def _with_own_code(self) -> Callable[..., torch.Tensor]:
        """``_plain_loss`` as a function of its own: torch counts how often one is compiled anew, and gives up after a few."""
        plain = ResidentStep._plain_loss
        own = types.FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
        return types.MethodType(own, self)

    def _plain_loss(self, tokens: torch.Tensor, mask: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        with autocast(self.config.precision, self.device):
            logits = self.model(tokens[:, :-1])
        return next_token_loss(logits, tokens, mask, self.model.output_kernel)[0] / count

    def _gradient(self) -> torch.Tensor:
        """Gradient of the mean loss of the batch at hand; the loss."""
        for parameter in self._parameters:
            parameter.grad = None
        count = self._mask[:, 1:].sum().clamp(min=1)
        total = torch.zeros((), device=self.device)
        for tokens, mask in zip(self._tokens.chunk(self.parts), self._mask.chunk(self.parts), strict=True):
            loss = self._loss_of(tokens, mask, count)
            loss.backward()
            total += loss.detach()
        return total

    def _do(self) -> None:
        """One step, without a look at any number."""
        torch.index_select(self._rates, 0, self._at, out=self._rate.view(1))
        loss = self._gradient()
        clip = self.config.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, math.inf if clip is None else clip)
        good = loss.isfinite() & norm.isfinite()
        self._stuck.copy_(torch.maximum(self._stuck, (~good).float()))
        self.optimizer.step()
        self._results.index_copy_(0, self._slot, torch.stack([loss, norm])[None])
        self._slot.add_(1).remainder_(RING)
        self._at.add_(1).clamp_(max=len(self._rates) - 1)

    @torch.no_grad()
    def _look(self) -> tuple[list[str], torch.Tensor]:
        """Sums of the support of some sequences of the batch at hand, by the weights as they are."""
        rows = slice(0, min(MEASURED, len(self._tokens)))
        tokens, mask = self._tokens[rows], self._mask[rows]
        with autocast(self.config.precision, self.device):
            _, stats = self.model(tokens[:, :-1], return_stats=True)
        ends = torch.zeros(len(tokens), device=self.device)
        meter = add_support(self.model, stats, Batch(tokens, mask, mask, ends, ends))
        return meter.sums()

    # ------------------------------------------------------------------ recording

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """This run's own stream is the current one."""
        if self._stream is None:
            yield
            return
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            yield

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """The device's random numbers come from this run's own generator, which a graph remembers."""
        if self._generator is None:
            yield
            return
        shared = torch.cuda.default_generators[torch.cuda.current_device()]
        before = shared.graphsafe_get_state()
        shared.graphsafe_set_state(self._generator.graphsafe_get_state())
        try:
            yield
        finally:
            shared.graphsafe_set_state(before)

    def _warm_up(self) -> None:
        """What the first call of anything makes (compiled code, workspaces, the optimizer's state) is made before recording.

        The optimizer is told that nothing is finite, so no weight and no moment changes.
        """
        if not self._on_gpu:
            return
        self._load(0)
        with exclusive, self._own_numbers():
            for _ in range(2):
                self._gradient()
                self._look()
            self._stuck.fill_(1)
            self.optimizer.step()
            self._stuck.zero_()
            self._at.zero_(), self._slot.zero_()
        torch.cuda.current_stream().synchronize()

    def _record(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """``work`` as a CUDA graph: what its tensors hold is what it left at the last call."""
        if not self._on_gpu:
            return work
        graph, made = torch.cuda.CUDAGraph(), []
        recording = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        try:
            with exclusive, self._own_numbers(), recording:
                made.append(work())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # The end of a recording that broke off fails, too, and says less.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise RecordingError(_gist(str(first))) from error

        def replay() -> Any:
            graph.replay()
            return made[0]

        return replay

    # ------------------------------------------------------------------ data

    def _load(self, step: int) -> None:
        """Copy the data of a step to where the recorded step reads them; make those of the steps after it meanwhile."""
        while self._chunks and not self._chunks[0][0] <= step < self._chunks[0][0] + self._chunk:
            self._chunks.popleft()
        start = self._chunks[-1][0] + self._chunk if self._chunks else step
        while len(self._chunks) < 2:
            self._chunks.append(self._draw(start))
            start += self._chunk
        first, batch, ready = self._chunks[0]
        if ready is not None:
            torch.cuda.current_stream().wait_event(ready)
        rows = slice((step - first) * self.config.batch, (step - first + 1) * self.config.batch)
        self._tokens.copy_(batch.tokens[rows])
        self._mask.copy_(batch.loss_mask[rows])

    def _draw(self, step: int) -> tuple[int, Batch, torch.cuda.Event | None]:
        config = self.config

        def sample() -> Batch:
            return self.task.sample(
                config.seed, step, config.batch, self.lengths, device=self.device, split="train", steps=self._chunk
            )

        if self._data_stream is None:
            return step, sample(), None
        with torch.cuda.stream(self._data_stream):
            batch, ready = sample(), torch.cuda.Event()
            ready.record()
        for tensor in batch:
            # Its memory may be used again only after this stream has read it.
            tensor.record_stream(torch.cuda.current_stream())
        return step, batch, ready

    # ------------------------------------------------------------------ steps

    def run(
        self, first: int, last: int, measured: Callable[[int], bool], stopping: Callable[[], bool]
    ) -> Iterator[Result]:
        """Do the steps ``first`` … ``last`` − 1 (from 0); one result each, in order.

        The last result may be that of a step that is not finite: no step after it has changed anything, and the next call
        says where to go on. When ``stopping`` says yes, the steps that are started are the last ones. Once it has ended, the
        weights are those after the last result.

        Parameters
        ----------
        measured: whether support and bandwidths after step number n (from 1) are wanted.
        """
        flying: collections.deque[_Pending] = collections.deque()
        step, looked = first, time.perf_counter()
        before = torch.cuda.current_stream(self.device) if self._on_gpu else None
        with self._place():
            for stream in (self._stream, self._data_stream):
                if stream is not None and before is not None:
                    # A checkpoint of the weights may be on its way to the CPU there.
                    stream.wait_stream(before)
            self._at.fill_(first)
            self._stuck.zero_()
        try:
            while flying or (step < last and not stopping()):
                while step < last and len(flying) < 2 and not (flying and stopping()):
                    with self._place():
                        flying.append(self._start(step, last, measured))
                    step += len(flying[-1].steps)
                block = flying.popleft()
                results = [*self._results_of(block)]
                now = time.perf_counter()
                self._pace, looked = (now - looked) / len(results), now
                for result in results:
                    if not result.finite:
                        self._settle()
                        yield result
                        return
                    yield result
        finally:
            self._settle()

    def _settle(self) -> None:
        """Wait until nothing is in flight; then other streams may read the weights."""
        if self._stream is not None:
            self._stream.synchronize()

    def _start(self, first: int, last: int, measured: Callable[[int], bool]) -> _Pending:
        """Start steps up to the next measured one."""
        looks: dict[int, _Measured] = {}
        slots, steps = [], []
        most = max(1, min(BLOCK, int(SECONDS / self._pace)))
        for step in range(first, min(last, first + most)):
            self._load(step)
            self._seed(step)
            found = self._measure() if measured(step + 1) else None
            if found is not None:
                names, sums = found
                found = names, sums.clone()
            self._seed(step)
            self._step()
            slots.append(self._launched % RING)
            steps.append(step)
            self._launched += 1
            if found is not None:
                betas = self.model.bandwidths()
                looks[step] = _Measured(
                    found[0], self._fetch(found[1]), [*betas], self._fetch(torch.stack([*betas.values()]))
                )
                break
        rows = self._results[slots[0] : slots[-1] + 1]
        if slots[-1] < slots[0]:
            rows = torch.cat([self._results[slots[0] :], self._results[: slots[-1] + 1]])
        results = self._fetch(rows)
        arrived = None
        if self._on_gpu:
            arrived = torch.cuda.Event()
            arrived.record()
        return _Pending(steps, results, looks, arrived)

    def _seed(self, step: int) -> None:
        seed = step_seed(self.config.seed, step)
        if self._generator is None:
            torch.manual_seed(seed)
        else:
            self._generator.manual_seed(seed)

    def _fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU, which is there when an event after it is."""
        if not self._on_gpu:
            return tensor.clone()
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def _results_of(self, block: _Pending) -> Iterator[Result]:
        if block.arrived is not None:
            block.arrived.synchronize()
        for step, (loss, norm) in zip(block.steps, block.results.tolist(), strict=True):
            support = bandwidths = None
            if step in block.measured:
                found = block.measured[step]
                support = SupportMeter.of(found.names, found.sums).overall()["support_size"]
                bandwidths = dict(zip(found.layers, found.bandwidths.tolist(), strict=True))
            yield Result(step, loss, norm, support, bandwidths)
