"""OpenVLA's backbone, which transformers does not have: DINOv2 and SigLIP side by side, an MLP, Llama-2.

Written anew from its published description (Prismatic VLMs, OpenVLA), so that its checkpoints load without running the
code they bring along. Module names are the checkpoint's. Of either tower the patches' states before the last block are
used, so the last block does not exist here.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from vlm4vla.backbones.families import HALF

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_DINO = {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096, "registers": 4}
_SIGLIP = {"width": 1152, "depth": 27, "heads": 16, "mlp": 4304, "registers": 0}


class PrismaticVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """Sizes of both towers; the defaults are `dinosiglip-vit-so-224px`, which OpenVLA has."""

    model_type = "prismatic_vision"

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 14,
        dino: dict[str, int] | None = None,
        siglip: dict[str, int] | None = None,
        **rest: Any,
    ) -> None:
        """`dino`, `siglip`: width, depth, heads, mlp (all as published, the unused block counted), registers."""
        self.image_size = image_size
        self.patch_size = patch_size
        self.dino = dino or _DINO
        self.siglip = siglip or _SIGLIP
        super().__init__(**rest)


class PrismaticConfig(PreTrainedConfig):  # type: ignore[misc]
    """Reads OpenVLA's config.json; what it says about actions and statistics is kept and not used."""

    model_type = "openvla"
    sub_configs = {"text_config": LlamaConfig, "vision_config": PrismaticVisionConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: dict[str, Any] | LlamaConfig | None = None,
        vision_config: dict[str, Any] | PrismaticVisionConfig | None = None,
        image_token_id: int = 257,
        **rest: Any,
    ) -> None:
        """`image_token_id` marks image slots; 257 is `<0xFE>` in Llama's vocabulary, which no text has."""
        text = text_config or {}
        vision = vision_config or {}
        self.text_config = LlamaConfig(**text) if isinstance(text, dict) else text
        self.vision_config = PrismaticVisionConfig(**vision) if isinstance(vision, dict) else vision
        self.image_token_id = image_token_id
        super().__init__(**rest)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        return x * self.scale_factor


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, *, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = _Scale(width) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width, mlp)
        self.ls2 = _Scale(width) if scaled else nn.Identity()

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class _Tower(nn.Module):
    """A vision transformer without its last block; with registers and layer scales (DINOv2) or without (SigLIP)."""

    def __init__(
        self, patches: int, patch: int, *, width: int, depth: int, heads: int, mlp: int, registers: int
    ) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(width, patch)
        self.pos_embed = nn.Parameter(torch.randn(1, patches, width) * 0.02)
        self.prefix = 0
        if registers:
            self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
            self.reg_token = nn.Parameter(torch.randn(1, registers, width) * 0.02)
            self.prefix = 1 + registers
        blocks = [_Block(width, heads, mlp, scaled=bool(registers)) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches width"]:
        pixels = pixels.to(self.patch_embed.proj.weight.dtype)  # bf16 where FSDP2 casts the weights
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + self.pos_embed
        if self.prefix:
            before = torch.cat([self.cls_token, self.reg_token], dim=1)
            x = torch.cat([before.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]


class _Vision(nn.Module):
    def __init__(self, config: PrismaticVisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.featurizer = _Tower(patches, config.patch_size, **config.dino)
        self.fused_featurizer = _Tower(patches, config.patch_size, **config.siglip)

    def forward(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch patches width"]:
        """`pixels` are normalised to [-1, 1], as SigLIP has them."""
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        dino = (pixels * HALF[0] + HALF[0] - mean) / std
        return torch.cat([self.featurizer(dino), self.fused_featurizer(pixels)], dim=-1)


class _Projector(nn.Module):
    def __init__(self, vision: int, text: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision, 4 * vision)
        self.fc2 = nn.Linear(4 * vision, text)
        self.fc3 = nn.Linear(text, text)

    def forward(self, x: Float[Tensor, "batch patches vision"]) -> Float[Tensor, "batch patches text"]:
        out: Tensor = self.fc3(functional.gelu(self.fc2(functional.gelu(self.fc1(x)))))
        return out


class _LanguageModel(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model = LlamaModel(config)


class PrismaticModel(PreTrainedModel):  # type: ignore[misc]
    """The base model: ids and pixels in, last hidden states out; projected patches replace the image slots."""

    config_class = PrismaticConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True  # its language model does
    _supports_sdpa = True
    _no_split_modules = ("_Block", "LlamaDecoderLayer")

    def __init__(self, config: PrismaticConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_backbone = _Vision(vision)
        self.projector = _Projector(vision.dino["width"] + vision.siglip["width"], text.hidden_size)
        self.language_model = _LanguageModel(text)
        last = "|".join(
            rf"{tower}\.(blocks\.{sizes['depth'] - 1}\.|norm\.|attn_pool\.)"
            for tower, sizes in (
                (r"vision_backbone\.featurizer", vision.dino),
                (r"vision_backbone\.fused_featurizer", vision.siglip),
            )
        )
        self._keys_to_ignore_on_load_unexpected = [last]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Llama's."""
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        self.language_model.model.embed_tokens = value

    def get_decoder(self) -> nn.Module:
        """Llama."""
        return self.language_model.model

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Both towers."""
        return self.vision_backbone

    def forward(
        self,
        input_ids: Int64[Tensor, "batch length"],
        pixel_values: Float[Tensor, "batch 3 size size"] | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **rest: Any,
    ) -> BaseModelOutputWithPast:
        """Pixels in [-1, 1]; every row has one image's slots, or none where there are no pixels."""
        embedded = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            patches = self.projector(self.vision_backbone(pixel_values)).to(embedded.dtype)
            is_image = (input_ids == self.config.image_token_id).unsqueeze(-1)
            embedded = embedded.masked_scatter(is_image, patches)
        output: BaseModelOutputWithPast = self.language_model.model(
            inputs_embeds=embedded, attention_mask=attention_mask, use_cache=use_cache, **rest
        )
        return output


AutoConfig.register(PrismaticConfig.model_type, PrismaticConfig)
AutoModel.register(PrismaticConfig, PrismaticModel)
