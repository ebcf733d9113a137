"""Finding the sites: the inputs of ops at which weights meet the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tf_dpfl.client_work.per_example.layouts import Layout, layouts_of_outputs
from tf_dpfl.client_work.per_example.positions import Positions, move_positions
from tf_dpfl.client_work.per_example.refusals import NoSoundRuleError, refuse, static_shape

# Their outputs depend on shapes alone, which are static and hold nothing private.
_SHAPES_ONLY = frozenset({"OnesLike", "Rank", "Shape", "ShapeN", "Size", "ZerosLike"})


@dataclass(frozen=True)
class Site:
    """Input `index` of `op` is made of weights alone, some other input of the batch.

    `positions`: which weights, in that input's shape. `layouts`: where the
    examples are in each input of `op`; `layout`: in its output.
    """

    op: Any
    index: int
    positions: Positions
    layouts: tuple[Layout | None, ...]
    layout: Layout
    examples: int


def find_sites(
    ops: Iterable[Any],
    *,
    batch: Iterable[Any],
    weights: Mapping[Any, Positions],
    losses: Any,
    examples: int,
) -> list[Site]:
    """The sites among `ops`, in order.

    Args:
      ops: the traced forward pass, from batch to losses, in the order of tracing.
      batch: the tensors [B, ...] that it starts from.
      weights: handle of each trained variable (`Tensor.ref()`) -> its positions.
      losses: the tensor [B] that it ends in.
      examples: B, at least 2.

    Raises:
      NoSoundRuleError: an op mixes examples, is not known to keep them apart, or
        computes with weights before they meet the batch.
    """
    found = _Search({tensor.ref(): Layout(0) for tensor in batch}, dict(weights), examples)
    needed = _needed_for(losses)
    for op in ops:
        if op.name in needed:
            found.visit(op)
    if losses.ref() in found.without_rule:
        raise found.without_rule[losses.ref()]
    if found.layouts.get(losses.ref()) != Layout(0) or static_shape(losses) != (examples,):
        refuse(losses.op, "the losses are not one number for each example of the batch")
    return found.sites


def _needed_for(losses: Any) -> set[str]:
    """The names of all ops that `losses` are computed from.

    Keras leaves others behind, like `inputs[0]`, of which it wants the dtype only.
    """
    needed: set[str] = set()
    pending = [losses.op]
    while pending:
        op = pending.pop()
        if op.name not in needed:
            needed.add(op.name)
            pending += [tensor.op for tensor in op.inputs]
    return needed


class _Search:
    """What is known of the tensors so far."""

    def __init__(self, layouts: dict[Any, Layout], positions: dict[Any, Positions], examples: int):
        self.layouts = layouts
        self.positions = positions
        self.examples = examples
        self.sites: list[Site] = []
        # Weights that were computed with: an error only if they meet the batch.
        self.without_rule: dict[Any, NoSoundRuleError] = {}

    def visit(self, op: Any) -> None:
        if not op.outputs or op.type in _SHAPES_ONLY:
            return
        layouts = [self.layouts.get(tensor.ref()) for tensor in op.inputs]
        positions = [self.positions.get(tensor.ref()) for tensor in op.inputs]
        meets_constant = (
            not any(layouts)
            and op.type == "MatMul"
            and positions[0] is None
            and positions[1] is not None
        )
        rows = static_shape(op.inputs[0])[0] if meets_constant else 0
        if rows and rows % self.examples == 0:
            # The zero state of a recurrent layer: a constant for every example (inside of
            # TimeDistributed: for each of its steps). To call its rows the examples' is
            # sound, since later ops keep rows apart.
            layouts[0] = Layout(0, inner=rows // self.examples)
        faults = [self.without_rule[t.ref()] for t in op.inputs if t.ref() in self.without_rule]
        if any(layouts):
            if faults:
                raise faults[0]
            self._meets_batch(op, layouts, positions)
        elif faults:
            self._mark(op, faults[0])
        elif any(p is not None for p in positions):
            self._moves_weights(op, positions)

    def _meets_batch(
        self, op: Any, layouts: list[Layout | None], positions: list[Positions | None]
    ) -> None:
        outputs = layouts_of_outputs(op, layouts, examples=self.examples)
        for tensor, layout in zip(op.outputs, outputs):
            if layout is not None:
                self.layouts[tensor.ref()] = layout
        for index, held in enumerate(positions):
            if held is None:
                continue
            if outputs[0] is None or len(outputs) != 1:
                refuse(op, "a weight meets the batch in an op of several outputs")
            self.sites.append(Site(op, index, held, tuple(layouts), outputs[0], self.examples))

    def _moves_weights(self, op: Any, positions: list[Positions | None]) -> None:
        try:
            moved = move_positions(op, positions)
            if moved is None:
                refuse(op, "it computes with weights before they meet the batch")
        except NoSoundRuleError as error:
            self._mark(op, error)
            return
        for tensor, held in zip(op.outputs, moved):
            self.positions[tensor.ref()] = held

    def _mark(self, op: Any, fault: NoSoundRuleError) -> None:
        for tensor in op.outputs:
            self.without_rule[tensor.ref()] = fault
