"""Pictures of what a network has learnt: filters, images that activate units, attributions."""
