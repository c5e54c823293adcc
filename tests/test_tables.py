"""Cost tables as data: what they predict, what they refuse, and that they survive JSON."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError, UnknownNameError
from autocompress.policy import LayerPolicy, Policy
from autocompress.tables import Beside, CostTable, Form, LayerCosts, Storage
from autocompress.target import Target
from tests.nets import resnet20, vgg
from tests.tables_made import made_costs

LAYERS = vgg()
TABLE = made_costs(LAYERS, Target())
FLOAT = LayerPolicy()
INTEGER = LayerPolicy(weight_bits=8, activation_bits=8)

forms = st.builds(
    LayerPolicy,
    weight_bits=st.integers(2, 8),
    activation_bits=st.sampled_from([None, 8]),
    weight_sparsity=st.floats(0, 0.95),
)


def one_layer(**changes: object) -> LayerCosts:
    plain: dict[str, Any] = {
        "name": "conv",
        "inputs": (8, 16),
        "outputs": (8, 24),
        "float_ms": ((1.0, 3.0), (2.0, 6.0)),
        "int8_ms": ((0.1, 0.3), (0.2, 0.6)),
        "weights": 16 * 24 * 9,
        "storage": (
            Storage(bits=None, forms=(Form(fixed=20, number=4, nonzero=0),), sparsities=(0.0,), zeros=(0.0,)),
            Storage(
                bits=2,
                forms=(Form(fixed=50, number=0.25, nonzero=0), Form(fixed=300, number=0.125, nonzero=0.25)),
                sparsities=(0.0, 0.5),
                zeros=(0.4, 0.6),
            ),
        ),
        "floats": Beside(layer=0, channel=4),
        "codes": Beside(layer=100, channel=8),
        "integer": Beside(layer=200, channel=13),
    }
    return LayerCosts(**(plain | changes))


def test_times_are_those_of_the_grid_and_bilinear_between_its_points() -> None:
    layer = one_layer()
    assert [layer.ms(inputs, outputs, FLOAT) for inputs, outputs in ((8, 8), (8, 24), (16, 8), (16, 24))] == [1, 3, 2, 6]
    assert layer.ms(12, 16, FLOAT) == pytest.approx((1 + 3 + 2 + 6) / 4)
    assert layer.ms(16, 12, INTEGER) == pytest.approx(0.2 * 0.75 + 0.6 * 0.25)
    assert layer.ms(2, 99, FLOAT) == 3.0  # outside of the grid: the nearest point


def test_a_layer_without_integer_kernel_takes_its_float_time() -> None:
    layer = one_layer(int8_ms=())
    assert layer.ms(16, 24, INTEGER) == 6
    assert not layer.is_integer(INTEGER)


def test_bytes_are_those_of_the_smallest_form() -> None:
    layer, weights = one_layer(), 16 * 24 * 9
    assert layer.bytes(16, 24, FLOAT) == 20 + 4 * weights + 24 * 4
    two = LayerPolicy(weight_bits=2)
    assert layer.bytes(16, 24, two) == 50 + 0.25 * weights + 100 + 24 * 8
    # Two bits round 40 % to zero by themselves; between what is known, zeros are interpolated, up to all at 1.
    halfway = LayerPolicy(weight_bits=2, activation_bits=8, weight_sparsity=0.75)
    sparse = 300 + 0.125 * weights + 0.25 * 0.2 * weights
    assert layer.bytes(16, 24, halfway) == pytest.approx(sparse + 200 + 24 * 13)
    # In a narrow layer the nodes of the sparse form weigh more than it saves.
    assert layer.bytes(8, 8, halfway) == pytest.approx(50 + 0.25 * weights * 64 / (16 * 24) + 200 + 8 * 13)


@given(how=forms, inputs=st.integers(1, 63), outputs=st.integers(1, 63))
def test_more_channels_and_fewer_zeros_never_take_fewer_bytes(how: LayerPolicy, inputs: int, outputs: int) -> None:
    size = TABLE.layer_bytes("conv2", inputs, outputs, how)
    assert TABLE.layer_bytes("conv2", inputs + 1, outputs, how) >= size
    assert TABLE.layer_bytes("conv2", inputs, outputs + 1, how) >= size
    fewer = how.model_copy(update={"weight_sparsity": how.weight_sparsity / 2})
    assert TABLE.layer_bytes("conv2", inputs, outputs, fewer) >= size


def test_a_policy_takes_what_its_layers_take_and_the_rest() -> None:
    # 8 bits, as they are stored beside integer activations.
    policy = Policy(channel_sparsity={"conv1": 0.5}, layers={layer.name: INTEGER for layer in LAYERS})
    stored = INTEGER.model_copy(update={"weight_bits": 7})
    widths = {"conv1": (1, 32), "conv2": (32, 64), "conv3": (64, 100), "head": (900, 10)}
    table = CostTable(**(dict(TABLE) | {"slope": 2.0, "intercept_ms": 0.5, "rest_bytes": 77.0}))
    assert table.size_bytes(policy, LAYERS) == pytest.approx(
        77 + sum(table.layer_bytes(name, *width, stored) for name, width in widths.items())
    )
    assert table.latency_ms(policy, LAYERS) == pytest.approx(
        0.5 + 2 * sum(table.layer_ms(name, *width, INTEGER) for name, width in widths.items())
    )


def test_a_border_between_floats_and_integers_takes_time() -> None:
    layers = tuple(LayerCosts(**(dict(layer) | {"border_ms": 1.0})) for layer in TABLE.layers)
    table = CostTable(**(dict(TABLE) | {"layers": layers}))

    def borders(*integer: str, share: float = 0.0) -> float:
        policy = Policy(channel_sparsity={"conv1": share}, layers=dict.fromkeys(integer, INTEGER))
        return table.latency_ms(policy, LAYERS) - TABLE.latency_ms(policy, LAYERS)

    assert borders() == pytest.approx(0)
    assert borders("conv1", "conv2", "conv3", "head") == pytest.approx(0)
    assert borders("conv2", "conv3", "head") == pytest.approx(1)
    assert borders("conv2", "conv3", "head", share=0.5) == pytest.approx(0.5)
    assert borders("conv2") == pytest.approx(2)


def test_names_and_bits_that_are_not_in_the_table() -> None:
    with pytest.raises(UnknownNameError, match=r"no layer in the cost table 'haed'; did you mean 'head'\?"):
        TABLE.layer_ms("haed", 1, 1, FLOAT)
    with pytest.raises(InputError, match="the cost table knows layer 'conv' in no 8 bits"):
        one_layer().bytes(8, 8, INTEGER)


def test_a_table_survives_json() -> None:
    table = made_costs(resnet20(), Target(batch_size=4))
    table.size_bytes(Policy(), resnet20())  # what it has computed is no part of it
    again = CostTable.from_json(table.to_json(indent=1))
    assert again == table
    assert "_lines" not in table.to_json()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda: one_layer(float_ms=((1.0, 3.0),)), "float_ms must have 2 rows of 2 times"),
        (lambda: one_layer(int8_ms=((1.0, 3.0), (1.0,))), "int8_ms must have 2 rows of 2 times"),
        (lambda: one_layer(float_ms=((1.0, float("nan")), (2.0, 6.0))), "finite number"),
        (lambda: one_layer(storage=()), "at least 1 item"),
        (
            lambda: Storage(bits=2, forms=(Form(fixed=0, number=1, nonzero=0),), sparsities=(0.0, 0.5), zeros=(0.4,)),
            "1 zeros for 2 sparsities",
        ),
    ],
)
def test_figures_that_do_not_fit_each_other_are_refused(damage: Callable[[], object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        damage()
