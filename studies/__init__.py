"""Programs that answered one question once, on top of dp2osr; nothing in dp2osr needs them."""
