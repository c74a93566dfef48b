"""Waterbirds' and CelebA's layouts made of CIFAR-10's photographs, and every method on them, tuned alike."""
