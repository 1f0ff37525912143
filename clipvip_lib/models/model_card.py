"""The README.md beside saved weights: what the model is, how to load it, what it is not."""

from __future__ import annotations

from clipvip_lib.flops import count_parameters
from clipvip_lib.models.attentions import JOINT

CARD = """\
---
library_name: transformers
tags:
- clip_vip
- video-text-retrieval
---

# CLIP-ViP

A CLIP for videos and texts after *CLIP-ViP: Adapting Pre-trained Image-Text Model to Video-Language
Representation Alignment* (arXiv 2209.06430, ICLR 2023). Both features are L2-normalised; their product is the
cosine similarity.

| | |
|---|---|
| Attention | {attention} |
| Proxies | {proxies} |
| Frames with a temporal embedding | {temporal_size} (others are interpolated) |
| Frame size | {image_size} pixels, patches of {patch_size} |
| Resizing in training | {resizing} |
| Vision tower | {vision} |
| Text tower | {text}, {vocab_size} tokens, at most {context} per text |
| Feature width | {projection_dim} |
| Parameters | {parameters:,} |

```python
import clipvip_lib  # registers clip_vip with transformers
from transformers import AutoModel

model = AutoModel.from_pretrained("this folder").eval()
videos = model.encode_video(pixels)  # [batch, frames, 3, height, width] -> [batch, {projection_dim}]
texts = model.encode_text(input_ids, attention_mask)
scores = texts @ videos.T
```

Pixels are resized to the frame size and normalised by CLIP's mean and standard deviation.

What the weights were trained on is not recorded here. If you publish them, say it, with the licences of the data
and of the weights that they started from.
"""

RESIZING = {True: "bicubic, antialiased", False: "bicubic, not antialiased", None: "not recorded"}


def model_card(model) -> str:
    """The card of a ClipViP, filled from its configuration."""
    config = model.config

    def tower(part) -> str:
        return (
            f"{part.num_hidden_layers} layers, width {part.hidden_size}, {part.num_attention_heads} heads, "
            f"{part.hidden_act}"
        )

    joint = config.attention in JOINT
    return CARD.format(
        attention=config.attention,
        proxies=config.proxies if joint else "none",
        temporal_size=config.temporal_size if joint else "none",
        image_size=config.vision_config.image_size,
        resizing=RESIZING[config.antialias],
        patch_size=config.vision_config.patch_size,
        vision=tower(config.vision_config),
        text=tower(config.text_config),
        vocab_size=config.text_config.vocab_size,
        context=config.text_config.max_position_embeddings,
        projection_dim=config.projection_dim,
        parameters=count_parameters(model),
    )
