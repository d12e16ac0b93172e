"""Inputs of VLMs without a family: their own processor is called for every observation, on the CPU.

Slower than `images.py` and `encoding.py` (the image is resized and cut up before it is sent), and right for any VLM:
which inputs there are, how often the image token is repeated and how pixels are laid out is the processor's to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto import video_processing_auto
from transformers.utils import is_torchvision_available

from vlm4vla.backbones.encoding import BackboneInputs
from vlm4vla.backbones.families import INSTRUCTION, Architecture
from vlm4vla.backbones.images import resize
from vlm4vla.core.errors import BackboneError
from vlm4vla.core.types import Observation

_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError)
_IMAGE_TOKENS = ("image_token", "boi_token", "fake_image_token")
_PROBE = "lift the red block"


def load_processor(location: str, *, where: str) -> ProcessorMixin:
    """A checkpoint's processor; torchvision is not needed for those that have another way to read images.

    Raises: BackboneError when files or libraries are missing; `where` names the checkpoint.
    """
    try:
        with _no_videos():
            processor = AutoProcessor.from_pretrained(location, trust_remote_code=False)
    except ImportError as error:
        raise BackboneError(f"{where}: its processor needs a library: {_first_line(error)}") from error
    except (*_REFUSALS, OSError) as error:
        raise BackboneError(
            f"{where}: its processor cannot be loaded ({_first_line(error)}). Copy processor_config.json or "
            "preprocessor_config.json and the tokenizer's files beside the weights."
        ) from error
    if not isinstance(processor, ProcessorMixin):
        raise BackboneError(
            f"{where}: has only a {type(processor).__name__}, but a VLM's processor reads images and text. "
            "Copy processor_config.json or preprocessor_config.json beside the weights."
        )
    return processor


class ProcessorEncoder:
    """Observations -> what the VLM's own processor makes of them, with the query token behind."""

    def __init__(
        self,
        processor: ProcessorMixin,
        architecture: Architecture,
        *,
        query_id: int,
        image_id: int | None,
        image_size: int,
        start_id: int | None,
        where: str,
    ) -> None:
        """`start_id`: the decoder's first token; the query then stands in the decoder, not behind the prompt.

        Raises: BackboneError when no way of calling the processor puts the image into the prompt.
        """
        self.image_size = image_size
        self.query_id = query_id
        self.tokenizer = processor.tokenizer
        pad = self.tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else self.tokenizer.eos_token_id or 0
        self._processor = processor
        self._start_id = start_id
        self._known: dict[str, Int64[np.ndarray, " length"]] = {}
        self.prompt, self._nested = self._find_call(architecture, image_id, where)

    def tokens(self, instruction: str) -> Int64[np.ndarray, " length"]:
        """The whole row of one instruction as `BackboneInputs.input_ids` has it."""
        known = self._known.get(instruction)
        if known is None:
            blank = np.zeros((self.image_size, self.image_size, 3), dtype=np.uint8)
            ids = self._row(Observation(image=blank, instruction=instruction))["input_ids"]
            known = self._known[instruction] = ids[0].numpy()
        return known

    def __call__(self, observations: Sequence[Observation], *, length: int | None = None) -> BackboneInputs:
        """Encode a batch, padded on the right to its longest row or to `length` tokens."""
        rows = [self._row(observation) for observation in observations]
        lengths = [row["input_ids"].shape[1] for row in rows]
        if length is not None and max(lengths) > length:
            raise ValueError(f"a prompt of {max(lengths)} tokens does not fit into {length}")
        wide = length or max(lengths)
        arguments = {
            name: torch.cat(
                [
                    _pad(row[name], wide, self.pad_id if name == "input_ids" else 0)
                    if _per_token(row[name], tokens)
                    else row[name]
                    for row, tokens in zip(rows, lengths, strict=True)
                ]
            )
            for name in rows[0]
        }
        ids = arguments.pop("input_ids")
        query_rows = torch.tensor(lengths if self._start_id is None else [2] * len(rows))
        images = torch.zeros(len(rows), 0, 0, 3, dtype=torch.uint8)
        return BackboneInputs(images, ids, query_rows, arguments)

    def _row(self, observation: Observation) -> dict[str, Tensor]:
        """One observation's arguments, the query included."""
        text = self.prompt.format(instruction=observation.instruction.strip())
        row = self._call(text, self._standard(observation.image), nested=self._nested)
        if bool((row["input_ids"] == self.query_id).any()):
            raise BackboneError(
                f"the instruction {observation.instruction!r} contains the token that marks the query; reword it"
            )
        if self._start_id is not None:
            return row | {"decoder_input_ids": torch.tensor([[self._start_id, self.query_id]])}
        length = row["input_ids"].shape[1]
        for name, value in row.items():
            if _per_token(value, length):
                row[name] = torch.cat([value, value[:, -1:]], dim=1)
        row["input_ids"][:, -1] = self.query_id
        return row

    def _standard(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "size size 3"]:
        return resize(torch.from_numpy(np.ascontiguousarray(image))[None], self.image_size)[0].numpy()

    def _call(
        self, text: str, image: UInt8[np.ndarray, "height width 3"], *, nested: bool
    ) -> dict[str, Tensor]:
        # A chat template writes the start token that the tokenizer would write once more.
        start = self.tokenizer.bos_token
        again = {"add_special_tokens": False} if start and text.startswith(start) else {}
        made = self._processor(
            text=[text], images=[[image]] if nested else [image], return_tensors="pt", **again
        )
        return {name: value for name, value in made.items() if name != "labels" and isinstance(value, Tensor)}

    def _find_call(self, architecture: Architecture, image_id: int | None, where: str) -> tuple[str, bool]:
        """The prompt and the nesting of images with which the processor puts an image into the text."""
        image = np.full((self.image_size, self.image_size, 3), 127, dtype=np.uint8)
        tried = []
        for prompt in self._prompts(architecture):
            for nested in (False, True):
                try:
                    made = self._call(prompt.format(instruction=_PROBE), image, nested=nested)
                except _REFUSALS as error:
                    tried.append(f"{prompt[:40]!r}: {_first_line(error)}")
                    continue
                if "input_ids" not in made or not any(value.is_floating_point() for value in made.values()):
                    tried.append(f"{prompt[:40]!r}: no ids or no pixels came back")
                elif image_id is not None and not bool((made["input_ids"] == image_id).any()):
                    tried.append(f"{prompt[:40]!r}: the image token (id {image_id}) is absent from the ids")
                else:
                    return prompt, nested
        raise BackboneError(
            f"{where}: its processor took no prompt with an image. Tried: {'; '.join(tried)}. "
            "Add the architecture's prompt to vlm4vla/backbones/families.py."
        )

    def _prompts(self, architecture: Architecture) -> Iterator[str]:
        tokens = [
            getattr(owner, name, None)
            for name in _IMAGE_TOKENS
            for owner in (self._processor, self.tokenizer)
        ]
        known = list(dict.fromkeys(token for token in [*tokens, "<image>"] if isinstance(token, str)))
        if architecture.prompt is not None:
            yield from (architecture.prompt.replace("{image}", token) for token in known)
            return
        template = getattr(self._processor, "chat_template", None) or self.tokenizer.chat_template
        if template:
            content = [{"type": "image"}, {"type": "text", "text": "<instruction>"}]
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=template if isinstance(template, str) else template["default"],
                add_generation_prompt=True,
                tokenize=False,
            )
            escaped = text.replace("{", "{{").replace("}", "}}")
            yield escaped.replace("<instruction>", INSTRUCTION)
        yield from (f"{token}{INSTRUCTION}\n" for token in known)
        yield f"{INSTRUCTION}\n"


def _per_token(value: Tensor, tokens: int) -> bool:
    """Whether the second dimension of one row's argument runs over its tokens."""
    return value.ndim >= 2 and value.shape[:2] == (1, tokens) and not value.is_floating_point()


def _pad(value: Tensor, length: int, fill: int) -> Tensor:
    missing = length - value.shape[1]
    if not missing:
        return value
    return torch.cat([value, value.new_full((1, missing, *value.shape[2:]), fill)], dim=1)


@contextmanager
def _no_videos() -> Iterator[None]:
    """Let processors load whose video half alone needs torchvision, where that is not installed."""
    with ExitStack() as stack:
        if not is_torchvision_available():
            check = ProcessorMixin.check_argument_for_proper_class

            def check_but_videos(processor: ProcessorMixin, name: str, value: Any) -> Any:
                return None if name == "video_processor" else check(processor, name, value)

            auto = video_processing_auto.AutoVideoProcessor
            stack.enter_context(mock.patch.object(auto, "from_pretrained", _nothing))
            stack.enter_context(
                mock.patch.object(ProcessorMixin, "check_argument_for_proper_class", check_but_videos)
            )
        yield


def _nothing(*arguments: object, **settings: object) -> None:
    return None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no reason given'}"
