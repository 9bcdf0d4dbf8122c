"""Anatomical embedding (Yan et al., TMI 2022): coarse and fine heads, contrastive loss."""
