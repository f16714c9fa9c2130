"""Vision transformers, timm's own; imported only where one is built, as timm takes seconds to load."""

from timm.models.vision_transformer import Block, VisionTransformer

SIZES = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}
"""Features and attention heads; all have twelve blocks."""


class ViT(VisionTransformer):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929; sizes of Touvron et al. 2021, arXiv 2012.12877).

    Its features are the class token after the last norm; parameter names are timm's. For images of another size, such
    as small crops, the position embedding is interpolated to their grid.
    """

    plain = ("cls_token", "pos_embed")
    block_names = (Block.__name__,)

    def __init__(self, name: str, image_size: int, patch: int, drop_path: float = 0) -> None:
        dim, heads = SIZES[name]
        super().__init__(
            img_size=image_size,
            patch_size=patch,
            embed_dim=dim,
            depth=12,
            num_heads=heads,
            num_classes=0,
            dynamic_img_size=True,
            drop_path_rate=drop_path,
        )
        self.feature_dim = dim
