"""Sizes that every family of tests shares: small, but with room for 200 tokens."""

SMALL = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=220)
GROUPED = SMALL | dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT = dict(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=220, bos_token_id=1, eos_token_id=2)
