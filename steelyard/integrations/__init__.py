"""Recording in other people's trainers: Hugging Face's `Trainer`, Lightning.

Each module here needs its package (the extras `huggingface` and `lightning`), and is imported by its name:
``from steelyard.integrations.huggingface import RecordingTrainer``.
"""
