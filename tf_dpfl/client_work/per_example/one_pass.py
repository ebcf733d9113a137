"""The clipped sum from one forward and one backward pass over the whole batch.

The backward pass goes only to the places where a weight meets the batch. There
each example's gradient is a sum of products of what went in and what came back:
its norm and the weighted sum over the batch follow without a second pass
(Goodfellow 2015, 1510.01799; Li et al. 2021, 2110.05679, "ghost clipping").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tf_dpfl.client_work.per_example.clipping import Selection, contribution_factors
from tf_dpfl.client_work.per_example.groups import Group
from tf_dpfl.client_work.per_example.joining import join
from tf_dpfl.client_work.per_example.loop import Losses
from tf_dpfl.client_work.per_example.positions import in_weight_order, number_entries
from tf_dpfl.client_work.per_example.refusals import NoSoundRuleError
from tf_dpfl.client_work.per_example.sites import Site, find_sites
from tf_dpfl.client_work.per_example.tracing import handles_of, overriding
from tf_dpfl.client_work.per_example.uses import use_at


def one_pass_clipped_sum(
    losses: Losses,
    batch: Mapping[str, tf.Tensor],
    weight: tf.Tensor,
    random: tf.Tensor | None,
    *,
    variables: Sequence[tf.Variable],
    scale: tf.Tensor,
    sensitivity: tf.Tensor,
    op_gradients: Mapping[str, str],
) -> list[tf.Tensor]:
    """As `clipped_gradient_sum`; raises NoSoundRuleError where it is not known to be right."""
    examples = weight.shape[0]
    if examples < 2:
        raise NoSoundRuleError("batch", "a batch of one example is the loop")
    graph = tf.compat.v1.get_default_graph()
    handles = handles_of(variables)
    numbered = number_entries(variables)
    # Copies belong to this graph, even if the batch was made in an outer one.
    batch = {name: tf.identity(values) for name, values in batch.items()}
    random = None if random is None else tf.identity(random)
    before = len(graph.get_operations())
    with overriding(op_gradients):
        loss = losses(batch, random)
    sites = find_sites(
        graph.get_operations()[before:],
        batch=[*batch.values(), *([] if random is None else [random])],
        weights={handle.ref(): positions for handle, positions in zip(handles, numbered)},
        losses=loss,
        examples=examples,
    )
    outputs = {site.op.name: site.op.outputs[0] for site in sites}
    grads = dict(zip(outputs, tf.gradients(tf.reduce_sum(loss), list(outputs.values()))))
    reached = [site for site in sites if grads[site.op.name] is not None]
    groups = join([(site, use_at(site, grads[site.op.name])) for site in reached])
    if not groups:
        return [tf.zeros(v.shape) for v in variables]
    squared_norms = tf.add_n([group.squared_norms() for _, group in groups])
    factors = contribution_factors(
        squared_norms, loss, weight, scale=scale, sensitivity=sensitivity
    )
    selection = Selection(*factors)
    return _to_variables(groups, selection, variables, handles)


def _to_variables(
    groups: Sequence[tuple[Site, Group]],
    selection: Selection,
    variables: Sequence[tf.Variable],
    handles: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """The groups' sums, led from the tensors at the sites back to the variables."""
    of_table: dict[int, list[tf.Tensor]] = {index: [] for index in range(len(variables))}
    tensors, sums = [], []
    numbers = {handle.ref(): index for index, handle in enumerate(handles)}
    for site, group in groups:
        tensor = site.op.inputs[site.index]
        total = in_weight_order(group.clipped_sum(selection), group.positions, site.positions)
        if tensor.ref() in numbers:  # looked up in the variable itself
            of_table[numbers[tensor.ref()]].append(total)
        else:
            tensors.append(tensor)
            sums.append(total)
    led_back = tf.gradients(tensors, handles, grad_ys=sums) if tensors else [None] * len(handles)
    results = []
    for index, (variable, gradient) in enumerate(zip(variables, led_back)):
        parts = of_table[index] + ([] if gradient is None else [tf.convert_to_tensor(gradient)])
        results.append(tf.add_n(parts) if parts else tf.zeros(variable.shape))
    return results
