"""The embedded world's weights and the commands that rebuild them."""
