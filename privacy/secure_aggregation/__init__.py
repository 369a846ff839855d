"""Secure aggregation: the server learns the sum of the sites' vectors, and no single one.

The protocol is described and argued for in docs/secure-aggregation.md. Nothing here knows Flower, torch, a clock, a
socket or a file; randomness comes in as an argument where a library does not draw its own.

- `terms`: the study's constants and what they tolerate; `context`: what a batch is about, and signatures;
- `messages`: what is sent, as bytes; `statements`: what is signed, and what keys are derived from;
- `site_setup`, `site_round`: a site's steps; `server_setup`, `server_round`: the server's;
- `shamir`, `masks`, `sealing`, `secret`, `encoding`: what the steps are made of; `refusals`: why they refuse.
"""
