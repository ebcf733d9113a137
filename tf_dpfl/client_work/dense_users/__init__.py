"""Many users of a dense network trained at once: low-rank first layers, batched others.

The input of a network's first dense layer does not change while it trains. So a
user's kernel there always is the initial one plus (its n inputs)^T D, with D of
shape [n, outputs]: steps of SGD and momentum on the kernel are the same steps on D
(both are linear), and norms follow from the inputs' Gram matrix. What is left of
the network is small, and runs for a block of users as batched products.

`DenseNet` says whether a model is of this kind, or why not; `train_users` trains.
"""

from tf_dpfl.client_work.dense_users.network import DenseNet, NotDenseError, users_of_a_block
from tf_dpfl.client_work.dense_users.training import BlockUpdates, train_users

__all__ = ["BlockUpdates", "DenseNet", "NotDenseError", "train_users", "users_of_a_block"]
