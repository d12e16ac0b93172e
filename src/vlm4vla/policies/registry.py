"""Action heads by name."""

from __future__ import annotations

from vlm4vla.core.errors import unknown_name
from vlm4vla.core.recipes import PolicyRecipe
from vlm4vla.policies.fast import FastHead
from vlm4vla.policies.flow import FlowHead
from vlm4vla.policies.heads import ActionHead, MLPHead
from vlm4vla.policies.tokens import TokensHead

HEADS: dict[str, type[ActionHead]] = {
    "mlp": MLPHead,
    "flow": FlowHead,
    "tokens": TokensHead,
    "fast": FastHead,
}


def make_head(recipe: PolicyRecipe, *, hidden_size: int, seed: int) -> ActionHead:
    """The recipe's head. Raises: RecipeError for an unknown name."""
    if recipe.head not in HEADS:
        raise unknown_name("head", recipe.head, HEADS)
    return HEADS[recipe.head].from_recipe(recipe, hidden_size=hidden_size, seed=seed)
