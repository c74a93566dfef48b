"""Tuning: random search over the ranges that methods declare, the choice by validation alone."""
