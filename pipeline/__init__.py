"""GPT pretraining and finetuning as a reproducible data pipeline."""
