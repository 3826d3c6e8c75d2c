"""What a compiled program asks of a device: bytes of memory, products, copies, and traffic between devices.

Read from the text of the optimised program. An instruction counts once for each time it runs: in a loop as often
as the compiler knows, in decoding, whose length nobody knows, as often as the caller says. Its bytes are its
operands and its result; of an operand that it slices, or writes a slice into, only the slice. What caches do, and
how much of its peak a device reaches, is not known here: this is what the code asks for.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_WIDTHS = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2, "f16": 2}
_WIDTHS |= {"s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "token": 0}  # the others: 4

_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations|branch_computations)=\{?%?([\w.\-, %]+)")
_DECODING = re.compile(r'op_name="[^"]*/decode/while"')  # the scope that `sampling.generate` names

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"}
_FREE |= {"replica-id", "opt-barrier", "add-dependency"}
_ONLY_MOVES = {"copy", "transpose", "concatenate", "dynamic-slice", "slice", "copy-start"}
_BESIDES = {"bitcast", "parameter", "constant", "tuple", "reshape"}  # in a fusion that only moves
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    arguments: str  # in its parentheses
    rest: str  # its attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def called(self) -> list[str]:
        found = _CALLED.findall(self.rest)
        return [name.strip().lstrip("%") for names in found for name in names.split(",") if name.strip()]


Computation = dict[str, Instruction]


@dataclass
class Work:
    """Of one device, over the whole program."""

    bytes: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0  # every instruction at the device's full speed, after another
    copies: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))  # bytes, by shape
    collectives: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))  # bytes, by kind
    synchronous: float = 0.0  # bytes of collectives beside which nothing is computed


class Module:
    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self.computations[head[1]] = {}
                self.entry = head[1] if line.startswith("ENTRY") else self.entry
            elif line.startswith("}"):
                current = None
            elif current is not None and (parsed := _INSTRUCTION.match(line)):
                name, shape, opcode, rest = parsed.groups()
                arguments = _in_parentheses(rest)
                current[name] = Instruction(name, shape, opcode, arguments, rest[len(arguments) :])

    def work(self, flops: float, bandwidth: float, decoded: Sequence[int] = ()) -> Work:
        """`flops` and `bandwidth` are the device's, for a second; `decoded` the lengths of the decoding loops."""
        work = Work()
        for instruction, siblings, times in self._run(self.entry, 1, iter(decoded)):
            moved, products = self._bytes(instruction, siblings), self._flops(instruction, siblings)
            kind = next((c for c in _COLLECTIVES if instruction.opcode.startswith(c)), None)
            if kind:
                received = times * max(_sizes(instruction.shape), default=0)
                work.collectives[kind] += received
                work.synchronous += 0 if instruction.opcode.endswith("-start") else received
                continue
            work.bytes += times * moved
            work.flops += times * products
            work.seconds += times * max(moved / bandwidth, products / flops)
            if self._only_moves(instruction):
                work.copies[_ARRAY.search(instruction.shape)[0].split("{")[0]] += times * moved / 2
        return work

    def _run(self, name: str, times: int, decoded: Iterator[int]):
        """(instruction, its computation, how often it runs) of everything that takes time."""
        for instruction in self.computations[name].values():
            if instruction.opcode == "while":
                body = re.search(r"body=%?([\w.\-]+)", instruction.rest)[1]
                yield from self._run(body, times * self._trips(instruction, decoded), decoded)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self._run(called, times, decoded)
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                yield instruction, self.computations[name], times

    def _trips(self, loop: Instruction, decoded: Iterator[int]) -> int:
        if _DECODING.search(loop.rest):
            return next(decoded, 1)
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        # TPUs' compiler does not write it down: a counter is compared with a constant.
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]]
        ends = [
            int(i.arguments) for i in condition.values() if i.opcode == "constant" and i.shape.startswith("s32[]")
        ]
        return ends[0] if len(ends) == 1 else 1

    def _bytes(self, instruction: Instruction, siblings: Computation) -> float | int:
        opcode, written = instruction.opcode, sum(_sizes(instruction.shape))
        read = [sum(_sizes(siblings[name].shape)) for name in instruction.operands if name in siblings]
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if opcode == "dynamic-update-slice":
            return 2 * read[1]
        if opcode == "scatter":
            return 3 * read[-1]
        if opcode == "copy-start":  # its result is a pair: destination and source
            return written
        if opcode != "fusion":
            return written + sum(read)
        inside = self.computations[instruction.called[0]]
        parameters = {int(i.arguments): name for name, i in inside.items() if i.opcode == "parameter"}
        in_place, total = _written_by_fusion(inside)
        for index, size in enumerate(read):
            aliases = _aliases(inside, parameters[index])
            users = [i for i in inside.values() if i.name not in aliases and aliases & set(i.operands)]
            if users and all(i.opcode in ("dynamic-slice", "slice", "gather") for i in users):
                total += min(size, sum(sum(_sizes(i.shape)) for i in users))
            elif parameters[index] not in in_place:
                total += size
        return total

    def _flops(self, instruction: Instruction, siblings: Computation) -> float | int:
        if instruction.opcode == "fusion":
            inside = self.computations[instruction.called[0]]
            return sum(self._flops(i, inside) for i in inside.values())
        if instruction.opcode == "convolution":
            return _convolution_flops(instruction, *(_dims(siblings[name].shape) for name in instruction.operands))
        found = re.search(r'lhs_contracting_dim(?:ension)?s"?[=:][\[{]([\d",]*)[\]}]', instruction.rest)
        if found is None or instruction.opcode not in ("dot", "custom-call"):
            return 0.0
        left = _dims(siblings[instruction.operands[0]].shape)
        return (
            2.0
            * math.prod(_dims(instruction.shape))
            * math.prod(left[int(d)] for d in re.findall(r"\d+", found[1]))
        )

    def _only_moves(self, instruction: Instruction) -> bool:
        """A copy, a transpose, a slice made whole; not what a TPU fetches to its chip."""
        if "S(1)" in instruction.shape:
            return False
        if instruction.opcode != "fusion":
            return instruction.opcode in _ONLY_MOVES
        inside = self.computations[instruction.called[0]].values()
        large = [i for i in inside if _dims(i.shape) and i.opcode not in _BESIDES]  # indices are scalars
        return bool(large) and all(i.opcode in _ONLY_MOVES for i in large)


def _written_by_fusion(inside: Computation) -> tuple[set[str], float | int]:
    """Parameters that it updates in place, and the bytes that it writes and reads again for them."""
    root = list(inside.values())[-1]
    results = [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]
    in_place, total = set(), 0.0
    for result in results:
        while result.opcode == "bitcast":
            result = inside[result.operands[0]]
        if result.opcode != "dynamic-update-slice":
            total += sum(_sizes(result.shape))
            continue
        total += 2 * sum(_sizes(inside[result.operands[1]].shape))
        in_place |= {name for name, i in inside.items() if result.operands[0] in _aliases(inside, name)}
    return in_place, total


def _convolution_flops(instruction: Instruction, image: list[int], kernel: list[int]) -> float:
    """How TPUs' compiler writes products. A spatial axis that only one side has is one of the product's own."""
    of_image, of_kernel = re.search(r"dim_labels=(\w+)_(\w+)->\w+", instruction.rest).groups()
    sizes = dict(zip(of_image, image, strict=True))
    contracted = [
        size if label == "i" else min(size, sizes[label])
        for label, size in zip(of_kernel, kernel, strict=True)
        if label != "o"
    ]
    return 2.0 * math.prod(_dims(instruction.shape)) * math.prod(contracted)


def _aliases(inside: Computation, name: str) -> set[str]:
    names = {name}
    for instruction in inside.values():
        if instruction.opcode == "bitcast" and names & set(instruction.operands):
            names.add(instruction.name)
    return names


def _in_parentheses(text: str) -> str:
    """Up to the parenthesis that closes them."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:place]
    return text


def _dims(shape: str) -> list[int]:
    found = _ARRAY.search(shape)
    return [int(d) for d in found[2].split(",") if d] if found else []


def _sizes(shape: str) -> list[float | int]:
    """Bytes in the main memory of each array in a shape. What a TPU holds on its chip is marked S(1)."""
    return [
        _WIDTHS.get(kind, 4) * math.prod(int(d) for d in dims.split(",") if d)
        for kind, dims, layout in _ARRAY.findall(shape)
        if "S(" not in layout
    ]
