"""Calls of TFF computations on one worker, in as few messages as they need."""

from __future__ import annotations

from typing import Any

import tensorflow_federated as tff
from tensorflow_federated.proto.v0 import executor_pb2
from tensorflow_federated.python.core.impl.executors import value_serialization


class RemoteCalls:
    """An executor on a worker, and the computations that it has been sent.

    TFF's own `RemoteExecutor` sends a computation, graphs and all, with every call of
    it, each part of an argument by itself, and lets every value go by itself: eleven
    messages a round, which cost as long as training some users. Here a computation is
    sent once, and a call takes four messages, the last of which lets its values go.

    Args:
      stub: of the connection.
      clients: how many the values placed at clients have.
    """

    def __init__(self, stub: Any, *, clients: int):
        cardinalities = value_serialization.serialize_cardinalities({tff.CLIENTS: clients})
        request = executor_pb2.GetExecutorRequest(cardinalities=cardinalities)
        self._stub = stub
        self._executor = stub.get_executor(request).executor
        self._sent: dict[Any, Any] = {}

    def call(self, computation: Any, argument: Any) -> Any:
        """The result of `computation`, NumPy arrays in TFF's structures.

        Args:
          computation: in the native form.
          argument: of its parameter's type, None where it takes none; no tensors.

        Raises TFF's RetryableError when the worker went away.
        """
        if computation not in self._sent:
            self._sent[computation] = self._create(computation, computation.type_signature)
        refs = []
        try:
            given = None
            if argument is not None:
                given = self._create(argument, computation.type_signature.parameter)
                refs.append(given)
            called = self._stub.create_call(
                executor_pb2.CreateCallRequest(
                    executor=self._executor,
                    function_ref=self._sent[computation],
                    argument_ref=given,
                )
            ).value_ref
            refs.append(called)
            answer = self._stub.compute(
                executor_pb2.ComputeRequest(executor=self._executor, value_ref=called)
            )
        finally:
            self._stub.dispose(executor_pb2.DisposeRequest(executor=self._executor, value_ref=refs))
        result_type = computation.type_signature.result
        return value_serialization.deserialize_value(answer.value, result_type)[0]

    def close(self) -> None:
        """Lets the worker forget all of it."""
        self._stub.dispose_executor(executor_pb2.DisposeExecutorRequest(executor=self._executor))

    def _create(self, value: Any, type_spec: Any) -> Any:
        content, _ = value_serialization.serialize_value(value, type_spec)
        request = executor_pb2.CreateValueRequest(executor=self._executor, value=content)
        return self._stub.create_value(request).value_ref
