"""Trains the two text encoders and the CLIP of the family together, on captions and images.

SDXL feeds the *last but one* hidden states of both encoders to the UNet. A contrastive loss on the pooled output alone
would teach these states neither word order nor binding. Each encoder therefore also has to predict, from that layer,
what the caption says about each object, and each patch of the image tower has to predict the object whose centre it
contains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from training.dataset import SceneData
from training.detection import centre_labels, detection_loss
from training.loop import Schedule, train
from training.scenes import BACKGROUNDS, COLOURS, MAX_OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES
from training.tokenizer import MAX_TOKENS
from training.vae import to_tensor

WIDTH = 96
PATCH = 8
#: Number of classes of each attribute of an object in a caption; the last class stands for "not stated".
SLOT_CLASSES = (len(SHAPES) + 1, len(COLOURS) + 1, len(TEXTURES), len(SIZES) + 1)
CELL_CLASSES = (1, len(SHAPES), len(COLOURS), len(TEXTURES), len(SIZES))


def _text_config(tokenizer: CLIPTokenizer, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class TextHeads(nn.Module):
    """Predicts the content of a caption from a vector [B, width]: four objects, the background and the relation."""

    def __init__(self, width: int):
        super().__init__()
        self.slots = nn.Linear(width, MAX_OBJECTS * sum(SLOT_CLASSES))
        self.rest = nn.Linear(width, len(BACKGROUNDS) + 1 + len(RELATIONS) + 1)

    def forward(self, x: torch.Tensor, said: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and whether each caption is predicted without an error, [B]; ``said`` is of :func:`said_labels`."""
        slots = self.slots(x).view(-1, MAX_OBJECTS, sum(SLOT_CLASSES)).split(SLOT_CLASSES, -1)
        answers = [a[:, i] for i in range(MAX_OBJECTS) for a in slots]
        answers += self.rest(x).split((len(BACKGROUNDS) + 1, len(RELATIONS) + 1), -1)
        loss = torch.stack([F.cross_entropy(a, said[:, i]) for i, a in enumerate(answers)]).mean()
        right = torch.stack([a.argmax(-1) == said[:, i] for i, a in enumerate(answers)]).all(0)
        return loss, right


def said_labels(data: SceneData) -> torch.Tensor:
    """Content of every caption, int64 [N, 18]: shape, colour, texture, size of each object; background; relation."""
    objects = data.objects.astype(np.int64)
    shape, colour, texture, size = (objects[..., i] for i in range(4))
    there = shape >= 0
    columns = [
        np.where(there, shape, len(SHAPES)),
        np.where(there & (objects[..., 4] > 0), colour, len(COLOURS)),
        np.where(there & (objects[..., 5] > 0), np.maximum(texture, 0), 0),
        np.where(there & (objects[..., 6] > 0), size, len(SIZES)),
    ]
    slots = np.stack(columns, -1).reshape(len(data), -1)
    ground = np.where(data.backgrounds[:, 1] > 0, data.backgrounds[:, 0], len(BACKGROUNDS))
    relation = np.where(data.relations >= 0, data.relations, len(RELATIONS))
    return torch.from_numpy(np.concatenate([slots, ground[:, None], relation[:, None]], 1).astype(np.int64))


class Encoders(nn.Module):
    """All modules that are trained here; the heads are discarded afterwards."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.first = CLIPTextModel(_text_config(tokenizer, "quick_gelu"))
        self.second = CLIPTextModelWithProjection(_text_config(tokenizer, "gelu"))
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=128,
                intermediate_size=256,
                projection_dim=WIDTH,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=64,
                patch_size=PATCH,
                hidden_act="gelu",
            )
        )
        self.first_heads = TextHeads(WIDTH)
        self.second_heads = TextHeads(WIDTH)
        self.pooled_heads = TextHeads(WIDTH)
        self.cell_head = nn.Linear(128, sum(CELL_CLASSES))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        for encoder in (self.first, self.second):
            for name, p in encoder.named_parameters():
                if p.dim() == 2 and "embedding" not in name:
                    nn.init.xavier_uniform_(p)
            nn.init.normal_(encoder.get_input_embeddings().weight, std=0.3)

    def clip(self) -> CLIPModel:
        """The second text encoder and the image tower as one ``transformers.CLIPModel``."""
        config = CLIPConfig(
            text_config=self.second.config.to_dict(),
            vision_config=self.vision.config.to_dict(),
            projection_dim=WIDTH,
        )
        model = CLIPModel(config)
        model.text_model.load_state_dict(self.second.text_model.state_dict())
        model.text_projection.load_state_dict(self.second.text_projection.state_dict())
        model.vision_model.load_state_dict(self.vision.vision_model.state_dict())
        model.visual_projection.load_state_dict(self.vision.visual_projection.state_dict())
        with torch.no_grad():
            model.logit_scale.copy_(self.logit_scale.detach())
        return model.eval()


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids, int64 [N, 32], padded and truncated as in SDXL's pipeline."""
    out = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return out.input_ids


def train_encoders(
    data: SceneData, tokenizer: CLIPTokenizer, folder: Path, *, steps: int, batch: int, seed: int, device: str
) -> Encoders:
    torch.manual_seed(seed)
    model = Encoders(tokenizer).to(device)
    ids = token_ids(tokenizer, data.captions).to(device)
    said = said_labels(data).to(device)
    eos = tokenizer.eos_token_id

    def loss(step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        index = torch.randint(len(data), (batch,), generator=generator, device=device).sort().values
        tokens, labels = ids[index], said[index]
        rows = torch.arange(batch, device=device)
        end = (tokens == eos).int().argmax(-1)  # eos is also the padding token, so take the first one
        first = model.first(tokens, output_hidden_states=True).hidden_states[-2][rows, end]
        out = model.second(tokens, output_hidden_states=True)
        total, right1 = model.first_heads(first, labels)
        second, right2 = model.second_heads(out.hidden_states[-2][rows, end], labels)
        pooled, _ = model.pooled_heads(out.text_embeds, labels)
        numbers = index.cpu().numpy()
        seen = model.vision(to_tensor(data.images[numbers], device))
        cells, _ = centre_labels(data.objects[numbers], 64 // PATCH)
        present, *attributes = model.cell_head(seen.last_hidden_state[:, 1:]).split(CELL_CLASSES, -1)
        found = detection_loss(present, attributes, cells.to(device))
        text = F.normalize(out.text_embeds, dim=-1)
        image = F.normalize(seen.image_embeds, dim=-1)
        logits = model.logit_scale.exp().clamp(max=50) * text @ image.T
        contrast = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        figures = {
            "te1": float(right1.float().mean()),
            "te2": float(right2.float().mean()),
            "cells": found.item(),
            "match": float((logits.argmax(-1) == rows).float().mean()),
        }
        return total + second + 0.5 * pooled + found + contrast, figures

    return train("encoders", model, loss, Schedule(steps=steps, lr=1e-3, seed=seed, flat=0.4), folder)


@torch.no_grad()
def embed_prompts(encoders: Encoders, ids: torch.Tensor, batch: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Conditioning of SDXL's UNet: hidden states [N, 32, 192] of both encoders and pooled vectors [N, 96], fp16."""
    states, pooled = [], []
    for part in ids.split(batch):
        first = encoders.first(part, output_hidden_states=True).hidden_states[-2]
        second = encoders.second(part, output_hidden_states=True)
        states.append(torch.cat([first, second.hidden_states[-2]], -1).half().cpu())
        pooled.append(second.text_embeds.half().cpu())
    return torch.cat(states), torch.cat(pooled)
