"""Does fine-tuning on confident pool samples help active learning, and which way of it does?"""
