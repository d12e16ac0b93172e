import numpy as np
import pytest

from vlm4vla.core.errors import DataError, RecipeError
from vlm4vla.core.normalization import ClipScale, Normalization, Quantiles
from vlm4vla.core.recipes import PolicyRecipe, check_policy
from vlm4vla.demonstrations.statistics import PUBLISHED, describe, fit_normalization, published


def actions(count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    made = rng.normal(size=(count, 7)) * np.linspace(0.01, 0.6, 7)
    made[:, 6] = rng.choice([-1, 1], count)
    return made.astype(np.float32)


def test_the_papers_chains() -> None:
    """CALVIN clips at 0.65; Bridge and LIBERO use quantiles, the released code then clips once more."""
    data = actions()
    assert fit_normalization(("clip=0.65",), data) == Normalization((ClipScale(0.65),))
    assert fit_normalization(("quantiles",), data) == Normalization((Quantiles.fit(data),))
    twice = fit_normalization(("quantiles", "clip=0.65"), data)
    assert twice == Normalization((Quantiles.fit(data), ClipScale(0.65)))
    normal = twice.normalize(data)
    assert np.abs(normal[:, :6]).max() == 1
    within = np.abs(Quantiles.fit(data).forward(data[:, :6])) < 0.65
    np.testing.assert_allclose(twice.denormalize(normal)[:, :6][within], data[:, :6][within], atol=1e-6)
    known = fit_normalization(("quantiles=bridge",), data)
    assert known == Normalization((Quantiles(PUBLISHED["bridge"].q01, PUBLISHED["bridge"].q99),))


def test_later_quantiles_are_of_what_earlier_steps_leave() -> None:
    data = actions()
    chain = fit_normalization(("clip=0.1", "quantiles"), data)
    last = chain.steps[-1]
    assert isinstance(last, Quantiles)
    assert last.low[0] == pytest.approx(np.quantile(data[:, 0] / 0.1, 0.01), abs=1e-6)
    assert last.low[5] == -1


@pytest.mark.parametrize(
    "step", ["clip", "clip=", "clip=0", "clip=-1", "clip=nan", "clip=x", "mean", "quantiles=", ""]
)
def test_an_unknown_step_is_refused(step: str) -> None:
    with pytest.raises(RecipeError, match="quantiles=NAME or clip=LIMIT"):
        check_policy(PolicyRecipe(backbone="tiny-qwen3-vl", normalization=(step,)))


def test_unknown_published_statistics_are_refused_and_no_actions_too() -> None:
    with pytest.raises(RecipeError, match=r"'bridg'.*bridge"):
        published("bridg")
    with pytest.raises(DataError, match="zero actions"):
        fit_normalization(("quantiles",), actions(0))


def test_columns_are_exact() -> None:
    data = actions()
    columns = describe(data, bins=10)
    assert [column.name for column in columns][-1] == "gripper"
    for index, column in enumerate(columns):
        values = data[:, index].astype(np.float64)
        assert (column.least, column.most) == (values.min(), values.max())
        assert (column.q01, column.q99) == tuple(np.quantile(values, [0.01, 0.99]))
        assert column.mean == pytest.approx(values.mean()) and column.deviation == pytest.approx(values.std())
        assert sum(column.histogram) == len(data) and len(column.histogram) == 10
    assert columns[6].histogram[0] + columns[6].histogram[-1] == len(data)
