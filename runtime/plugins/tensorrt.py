"""The operations as TensorRT plugins of version 3, for either of the packages `tensorrt_rtx` and `tensorrt`.

In ONNX they are nodes of domain `llmc`, named like the operation, with its scalars and `kernels`, the key of its kernel
set, as attributes. An engine holds the same; whoever deserializes it registers the artifact's kernels first.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from llmc.errors import MachineError
from llmc.registry import Registry
from llmc.runtime.plugins.kernel_set import KernelSet, read
from llmc.runtime.plugins.operation import Gpu, Operation
from llmc.runtime.plugins.prepared import PreparedLaunch
from llmc.visible import visible

NAMESPACE, VERSION = "llmc", "1"
operations: Registry[type[Operation]] = Registry("operation", "llmc.runtime.plugins", "OPERATION")

_MOST_PREPARED = 64  # shapes of a plugin in one context; a kilobyte or two each

_types = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "i8": "int8", "i32": "int32", "i64": "int64"}
_kernels: dict[str, KernelSet] = {}  # of all artifacts of this process
_creators: dict[str, list[Any]] = {}  # by package; TensorRT keeps no reference
failures: list[str] = []  # what plugins raised; TensorRT drops it, and fails with less


def names() -> set[str]:
    """As engines' descriptions call them."""
    return {f"{NAMESPACE}.{name}" for name in operations.all}


def register(trt: ModuleType, kernels: Path) -> set[str]:
    """Let `trt`, either package, find the plugins, and these the kernels of the file, whose keys are returned."""
    found = read(kernels)
    _kernels.update(found)
    if trt.__name__ in _creators:
        return set(found)
    plugin = _plugin_class(trt)
    creators = [_creator_class(trt)(trt, operation, plugin) for operation in operations.all.values()]
    registry = trt.get_plugin_registry()
    for creator in creators:
        if not registry.register_creator(creator, NAMESPACE):
            raise RuntimeError(f"{trt.__name__} does not take the plugin {NAMESPACE}.{creator.name}")
    _creators[trt.__name__] = creators
    return set(found)


def load(keys: Iterable[str], gpu: Gpu) -> None:
    """The kernels of registered sets, into the current context, which is that of `gpu`.

    Raises:
        MachineError: There are none for this GPU, or the driver does not take them.
    """
    for key in keys:
        _kernels[key].load(gpu.sm, gpu.device)


def _creator_class(trt: Any) -> type:
    class Creator(trt.IPluginCreatorV3One):
        def __init__(self, trt: Any, operation: type[Operation], plugin: type) -> None:
            super().__init__()
            self.name, self.plugin_namespace, self.plugin_version = operation.name, NAMESPACE, VERSION
            kinds = trt.PluginFieldType
            fields = [trt.PluginField("kernels", np.array([], np.int8), kinds.CHAR)]
            fields += [trt.PluginField(name, np.array([], np.float32), kinds.FLOAT32) for name in operation.scalars]
            self.field_names = trt.PluginFieldCollection(fields)
            self._operation, self._plugin = operation, plugin

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name: field.data for field in fields}
            key = bytes(np.asarray(given["kernels"], np.int8)).decode().rstrip("\0")
            if key not in _kernels:
                failures.append(f"{name}: the kernels {key!r} of {self._operation.name} are not registered")
                print(visible(failures[-1]), file=sys.stderr)
                return None
            scalars = {scalar: float(given[scalar][0]) for scalar in self._operation.scalars if scalar in given}
            return self._plugin(self._operation(_kernels[key], **scalars))

    return Creator


def _plugin_class(trt: Any) -> type:
    types = {getattr(trt, name): kind for kind, name in _types.items()}

    def told(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except Exception as error:
                traceback.print_exc()
                failures.append(str(error))
                raise

        return wrapped

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
        def __init__(self, operation: Operation) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuildV2, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.operation = operation
            self.plugin_name, self.plugin_namespace, self.plugin_version = operation.name, NAMESPACE, VERSION
            self.num_outputs = len(operation.outputs)
            self.input_types = [each.type for each in operation.inputs]  # until TensorRT says what they are
            self.failure = ""  # why its kernels cannot run here
            self.gpu: Gpu | None = None  # that it is attached to
            axes = [[axis for axis, size in enumerate(each.shape) if size is None] for each in operation.inputs]
            self._dynamic = [(i, each) for i, each in enumerate(axes) if each]
            self._prepared: dict[tuple[int, ...], PreparedLaunch] = {}  # by the sizes of these axes

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            copied = Plugin(self.operation)
            copied.input_types, copied.failure, copied.gpu = self.input_types, self.failure, self.gpu
            return copied

        # What it computes

        @told
        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            self.input_types = [types.get(each, str(each)) for each in input_types]
            return [getattr(trt, _types[each.type]) for each in self.operation.outputs]

        @told
        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            known = [[d.get_constant_value() if d.is_constant() else None for d in shape] for shape in inputs]
            self.operation.check(known, self.input_types)
            found = []
            for output in self.operation.outputs:
                shape = trt.DimsExprs(len(output.shape))
                for axis, d in enumerate(output.shape):
                    shape[axis] = builder.constant(d) if isinstance(d, int) else inputs[d[0]][d[1]]
                found.append(shape)
            return found

        def get_aliased_input(self, output: int) -> int:
            aliased = self.operation.outputs[output].aliased
            return -1 if aliased is None else aliased

        # How its tensors lie in memory

        def supports_format_combination(self, position: int, tensors: Sequence[Any], num_inputs: int) -> bool:
            operation: Operation = self.operation
            wanted = [each.type for each in operation.inputs] + [each.type for each in operation.outputs]
            given = tensors[position].desc
            return given.format == trt.TensorFormat.LINEAR and types.get(given.type) == wanted[position]

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Nothing depends on the profile."""

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return self.operation.workspace_bytes([tuple(each.max) for each in inputs])

        def get_valid_tactics(self) -> list[int]:
            return []

        # Running it

        def get_fields_to_serialize(self) -> Any:
            operation, kinds = self.operation, trt.PluginFieldType
            key = np.frombuffer(operation.kernels.key.encode(), np.int8)
            fields = [trt.PluginField("kernels", key, kinds.CHAR)]
            for name in operation.scalars:
                value = np.array([getattr(operation, name)], np.float32)
                fields.append(trt.PluginField(name, value, kinds.FLOAT32))
            self._fields = fields, trt.PluginFieldCollection(fields)  # TensorRT reads them after this returns
            return self._fields[1]

        def attach_to_context(self, context: Any) -> Any:
            """Called while compiling, too, without a GPU or on another one than the engine is for; what is raised here
            ends the process. What cannot be loaded is said when it is to be run, and is not tried again then: a stream
            that is being captured allows no loading.
            """
            attached = self.clone()
            try:
                attached.gpu = gpu = Gpu.current()
                self.operation.kernels.load(gpu.sm, gpu.device)
            except Exception as error:
                attached.failure = str(error) or repr(error)
            return attached

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        @told
        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self.operation.check([tuple(each.dims) for each in inputs], [types[each.type] for each in inputs])

        @told
        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            if self.failure:
                raise MachineError(self.failure)
            sizes = []  # one by one: to make a tuple of TensorRT's dimensions takes longer than all the rest
            for i, axes in self._dynamic:
                dims = input_desc[i].dims
                sizes += [dims[axis] for axis in axes]
            shapes = tuple(sizes)
            if (prepared := self._prepared.get(shapes)) is None:
                if len(self._prepared) == _MOST_PREPARED:
                    self._prepared.clear()
                prepared = PreparedLaunch(
                    self.operation, self.gpu or Gpu.current(), [tuple(each.dims) for each in input_desc]
                )
                self._prepared[shapes] = prepared
            prepared((*inputs, *outputs, workspace), stream)

    return Plugin
