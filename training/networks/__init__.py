"""The networks: volumes, encoder, decoder, transformer over frames, pooling, and the model made of them."""
