"""Where in the body is this voxel? Body masks, atlas registration, matching between cases."""
