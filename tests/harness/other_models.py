# SPDX-License-Identifier: Apache-2.0
"""A torch net and MindSpore ports of it, right and wrong, for the tests of parity.api. `bug` names what is wrong."""


def reference(bug=""):
    """(B, 6) -> (B, 4)."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(6, 8)
            self.act = nn.GELU()
            self.norm = nn.LayerNorm(8, eps=1e-5)
            self.mix = nn.Linear(8, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x, shift=0.3):
            h = self.norm(self.act(self.up(x)))
            return self.head(h + torch.tanh(self.mix(h)) + shift)

    return Net()


def port(bug=""):
    """The same under other names."""
    import numpy as np
    from mindspore import Parameter, Tensor, nn, ops

    class Stored(nn.Cell):
        """A matrix stored as (in, out)."""

        def __init__(self, into, out):
            super().__init__()
            self.kernel = Parameter(Tensor(np.zeros((into, out), np.float32)))
            self.offset = Parameter(Tensor(np.zeros(out, np.float32)))

        def construct(self, x):
            return ops.matmul(x, self.kernel) + self.offset

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.out = nn.Dense(8, 4)
            self.inner = Stored(8, 8)
            self.first = nn.Dense(6, 8)
            self.gelu = nn.GELU(approximate=bug == "gelu")
            self.ln = nn.LayerNorm((8,), epsilon=1e-7 if bug == "eps" else 1e-5)
            if bug == "surplus":
                self.scale = Parameter(Tensor(np.ones(3, np.float32)))

        def construct(self, x, shift=0.3):
            if bug == "crash":
                raise ValueError("no such frame\nsecond line")
            h = self.ln(self.gelu(self.first(x)))
            residual = ops.stop_gradient(h) if bug == "gradient" else h
            turned = self.inner(h.astype(self.inner.kernel.dtype))
            return self.out(residual + ops.tanh(turned) + (-shift if bug == "wiring" else shift))

    return Net()


def no_module(bug=""):
    """A factory that returns no module."""
    return 3


def twins_reference():
    """Two branches that nothing can tell apart."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return (self.a(x).tanh() + self.b(x).tanh()).sin()

    return Net()


def twins_port():
    """The same under other names."""
    from mindspore import nn, ops

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.p, self.q = nn.Dense(5, 5), nn.Dense(5, 5)

        def construct(self, x):
            return ops.sin(ops.tanh(self.p(x)) + ops.tanh(self.q(x)))

    return Net()


def table_reference(bug="", persistent=False):
    """Positions are added from a table that is in no checkpoint, or in one. (B, 5, 6) -> (B, 5, 6)."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)
            table = torch.sin(torch.arange(30).reshape(5, 6) * 0.3)
            self.register_buffer("pos", table, persistent=persistent)
            self.register_buffer("mask", torch.full((5,), -torch.inf), persistent=False)

        def forward(self, x):
            return self.fc(x) + self.pos + torch.exp(self.mask)[:, None]

    return Net()


def table_port(bug="", persistent=False):
    """The same, the table in float32 whatever the type of the run, and another finite word for minus infinity."""
    import numpy as np
    from mindspore import Parameter, Tensor, nn, ops

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fc = nn.Dense(6, 6)
            wave = np.cos if bug == "table" else np.sin
            table = wave(np.arange(30).reshape(1, 5, 6) * np.float32(0.3)).astype(np.float32)
            name = "grid" if bug == "stranger" else "pos"
            table = 2 * table if bug == "stranger" else table
            setattr(self, name, Parameter(Tensor(table), requires_grad=bug == "trained"))
            self.mask = Parameter(Tensor(np.full(5, -1e9, np.float32)), requires_grad=False)

        def construct(self, x):
            pos = self.grid / 2 if bug == "stranger" else self.pos
            return self.fc(x) + pos + ops.exp(self.mask)[:, None]

    return Net()


def gated_reference(bug=""):
    """A gated unit: which of the two branches passes the gate, only the names tell. (B, 6) -> (B, 6)."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w1, self.w3 = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
            self.mix = nn.Linear(8, 8, bias=False)
            self.head = nn.Linear(8, 6)

        def forward(self, x):
            return self.head(self.mix(self.w1(x).tanh() * self.w3(x)))

    return Net()


def gated_port(bug=""):
    """The same; the head has another name."""
    import numpy as np
    from mindspore import Parameter, Tensor, nn, ops

    class Untransposed(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(Tensor(np.zeros((8, 8), np.float32)))

        def construct(self, x):
            return ops.matmul(x, self.weight)

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.w1, self.w3 = nn.Dense(6, 8, has_bias=False), nn.Dense(6, 8, has_bias=False)
            self.mix = Untransposed() if bug == "orientation" else nn.Dense(8, 8, has_bias=False)
            self.out = nn.Dense(8, 6)

        def construct(self, x):
            gate, value = (self.w3, self.w1) if bug == "exchanged" else (self.w1, self.w3)
            return self.out(self.mix(ops.tanh(gate(x)) * value(x)))

    return Net()


def attending_reference(bug=""):
    """Two blocks of one kind, two results, a layer that is never called. (B, 6) -> (B, 6), (B,)."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.fc(torch.softmax(self.q_proj(x) @ self.k_proj(x).T, -1) @ x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.idle = nn.Linear(5, 3)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x, x.mean(1)

    return Net()


def attending_port(bug=""):
    """The same under other names. bug: "exchanged" queries and keys, a wrong "second" result, "nothing" returned."""
    from mindspore import nn, ops

    class Layer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_k = nn.Dense(6, 6, has_bias=False), nn.Dense(6, 6, has_bias=False)
            self.down = nn.Dense(6, 6)

        def construct(self, x):
            q, k = (self.to_k, self.to_q) if bug == "exchanged" else (self.to_q, self.to_k)
            return x + self.down(ops.matmul(ops.softmax(ops.matmul(q(x), k(x).T), -1), x))

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.layers = nn.CellList([Layer() for _ in range(2)])
            self.unused = nn.Dense(5, 3)

        def construct(self, x):
            for layer in self.layers:
                x = layer(x)
            if bug != "nothing":
                return x, x.mean(1) * (1.001 if bug == "second" else 1)

    return Net()


def mapping_reference(bug=""):
    """Results in mappings, one inside another, and of a layer; None is no result. (B, 6) -> mapping of (B, 4)."""
    from torch import nn

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            y = self.fc(x)
            return dict(plain=y, double=2 * y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            two = self.two(x)
            return dict(
                mean=two["plain"],
                aux=dict(logvar=two["double"], gate=two["plain"] * two["double"]),
                none=None,
            )

    return Net()


def mapping_port(bug=""):
    """The same in another order of keys. bug "tuple": a right one without keys."""
    from mindspore import nn

    class Two(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fc = nn.Dense(6, 4)

        def construct(self, x):
            y = self.fc(x)
            return (y, 2 * y) if bug == "tuple" else dict(double=2 * y, plain=y)

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def construct(self, x):
            two = self.two(x)
            if bug == "tuple":
                return two[0], (two[1], two[0] * two[1])
            mean, logvar, gate = two["plain"], two["double"], two["plain"] * two["double"]
            if bug == "exchanged":
                return dict(mean=mean, aux=dict(gate=logvar, logvar=gate))  # right by position alone
            last = "gates" if bug == "renamed" else "gate"
            return dict(aux={last: gate, "logvar": logvar}, mean=mean)

    return Net()


def cast_reference(spelling=""):
    """A softmax in float32. (B, 6) -> (B, 4)."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return torch.softmax(self.fc(x).to(torch.float32), -1).to(x.dtype)

    return Net()


def cast_port(spelling=""):
    """The same; spelling: a statement that names the type `single`."""
    import mindspore
    from mindspore import nn, ops

    names = {"mindspore": mindspore}
    exec(spelling, names)

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            self.fc = nn.Dense(6, 4)

        def construct(self, x):
            single = names["single"] if "single" in names else names["types"].float32
            return ops.softmax(self.fc(x).astype(single), -1).astype(x.dtype)

    return Net()
