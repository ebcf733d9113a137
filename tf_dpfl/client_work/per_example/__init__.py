"""Per-example clipped gradient sums: the heart of DP-SGD inside a client.

`one_pass` finds the places where weights meet the batch (`sites`), asks the
rule of each place for what it says about every example's gradient (`uses`), and
puts norms and the clipped sum together from that. Where a place has no sound
rule, `loop` takes the examples one after the other.

To add a rule: write a function under `@use_of("OpType", index)` in the file of
its family (`uses_*.py`; a new family: a new file, imported below) and a model
with the layer to `tests/client_work/per_example_models.py`. An op of the
batch alone needs a rule in `layouts.py`, which says that it keeps examples apart.
"""

from tf_dpfl.client_work.per_example import (  # noqa: F401  importing a family registers its rules
    layouts_arrays,
    layouts_windows,
    uses_convolution,
    uses_elementwise,
    uses_gather,
    uses_linear,
)
from tf_dpfl.client_work.per_example.clipped_sum import (
    Method,
    choose_method,
    clipped_gradient_sum,
)
from tf_dpfl.client_work.per_example.refusals import NoSoundRuleError

__all__ = ["Method", "NoSoundRuleError", "choose_method", "clipped_gradient_sum"]
