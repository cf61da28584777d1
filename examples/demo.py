"""The main job: an attention of one's own, looked at from all sides, and a real pretrained model on Regard.

Run it with ``./scripts/demo``. Pictures and generated code are written to ``out/``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import transformers
from sentence_encoder import RegardAttention, SentenceEncoder

import regard as rg

SENTENCES = (
    "A man is eating a piece of bread.",
    "The harbour was quiet.",
    "Someone is having some food at the kitchen table while reading the morning paper.",
    "A woman plays the violin on stage.",
    "The orchestra tuned its instruments, the lights went down, and a violinist in a long red dress began to play.",
    "It rained all night.",
    "Heavy rain fell from evening until dawn, and by the morning the river had risen over its banks.",
    "The cat sleeps on the windowsill.",
    "A small animal is dozing by the window in the sun.",
    "Interest rates were raised by a quarter of a percentage point.",
    "The central bank decided on Thursday to make borrowing slightly more expensive, as most analysts had expected.",
    "Boats lay still in the port.",
    "Scientists have found water ice in a permanently shadowed crater near the south pole of the Moon.",
    "Frozen water was discovered on the Moon.",
    "He forgot his keys again.",
    "She could not enter the house because her keys were lying on the desk in her office on the other side of town.",
    "The train to the coast leaves at nine.",
    "At nine o'clock there is a railway connection to the seaside.",
    "Bread is baked from flour, water, salt and yeast.",
    "How do I reset my password?",
    "I can no longer log in to my account because I do not remember the secret word that I chose last year.",
    "The translation of the poem keeps its rhyme but loses its rhythm.",
    "Two children are building a castle out of sand on the beach.",
    "Stop.",
)

START = time.perf_counter()


def say(text: str = "") -> None:
    """Progress: what begins now, and the seconds since the start."""
    print(f"[{time.perf_counter() - START:5.1f} s] {text}" if text else "", flush=True)


@rg.mask
def window_and_sinks(q, kv, window, sinks):
    return (q >= kv) & ((q - kv < window) | (kv < sinks))


@rg.score
def linear_bias(s, q, kv, head, slopes):
    return s - slopes[head] * (q - kv)


def own_attention(out: Path, length: int = 4096, target: str = "sm_90") -> None:
    """Part (a): define, prove, count, draw, print and compile an attention; no GPU is needed."""
    slopes = torch.exp2(-torch.arange(1, 9))
    attn = rg.attention(window_and_sinks(window=512, sinks=4), linear_bias(slopes=slopes), rg.softcap(30.0))
    print(attn, end="\n\n")

    say(f"what was proved, and exact counts for 8 heads of 64 at {length} tokens")
    shape = (1, 8, length, 64)
    report = attn.explain(shape, dtype="bf16", target=target)
    print(report.text(with_variant=False), end="\n\n")

    say("drawing the tiles")
    attn.plot(shape, path=out / "tiles.png")

    for direction in ("forward", "backward"):
        say(f"printing and compiling the {direction} kernel for {target}")
        options = {"direction": direction, "target": target, "dtype": "bf16", "head_dim": 64}
        (out / f"{direction}.py").write_text(attn.source(**options))
        (out / f"{direction}.ptx").write_text(attn.ptx(**options))
        (out / f"{direction}.sass").write_text(attn.sass(**options))

    say("running it, forward and backward, on this machine")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query, key, value = torch.randn(3, *shape[:2], length // 4, 64, device=device).unbind()
    query.requires_grad_()
    attn = rg.attention(window_and_sinks(window=512, sinks=4), linear_bias(slopes=slopes.to(device)), rg.softcap(30.0))
    attn(query, key, value).sum().backward()
    say(f"wrote {', '.join(sorted(path.name for path in out.iterdir()))} to {out}/")


def sentence_embeddings(sentences: tuple[str, ...], batch_size: int, device: str) -> None:
    """Part (b): the same embeddings from the stock model and from Regard, and different ones where they should be."""
    transformers.utils.logging.disable_progress_bar()

    def encode(name: str, attention: RegardAttention | None = None) -> torch.Tensor:
        say(f"encoding {len(sentences)} sentences with {name}")
        if attention is not None:
            attention.register(name)
        return SentenceEncoder(name, device).encode(sentences, batch_size)

    stock = encode("sdpa")
    attention = RegardAttention()
    embeddings = encode("regard", attention)

    difference = (embeddings - stock).abs().max().item()
    batches = -(-len(sentences) // batch_size)
    print(f"  largest difference of an embedding's entry from the stock model: {difference:.1e}")
    print(f"  calls of Regard: {attention.calls} = {attention.calls // batches} layers x {batches} batches")
    assert difference <= 1e-5, "the embeddings differ from the stock model's"
    assert attention.calls == 6 * batches, "some layer did not call Regard"

    variations = {
        "regard-window": RegardAttention(rg.sliding_window(left=1, right=1)),
        "regard-unpadded": RegardAttention(use_padding=False),
    }
    for name, variation in variations.items():
        change = (encode(name, variation) - stock).abs().max().item()
        print(f"  {name}: embeddings change by up to {change:.3f}")
        assert change > 1e-3, "a different mask must give different embeddings"

    print("  most similar sentences:")
    similarity = (embeddings @ embeddings.T).triu(diagonal=1)
    for score, pair in zip(*similarity.flatten().topk(min(6, len(sentences))), strict=True):
        a, b = divmod(pair.item(), len(sentences))
        print(f"  {score:.3f}  {sentences[a]}\n         {sentences[b]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and generated code")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    say("an attention of our own: a window and sinks, with a linear bias and capped scores")
    own_attention(arguments.out)
    say()
    say("a real model: all-MiniLM-L6-v2, its attention replaced")
    sentence_embeddings(SENTENCES, batch_size=8, device="cpu")
    if torch.cuda.is_available():
        from speed import speed_table

        say()
        say("the same on the GPU")
        sentence_embeddings(SENTENCES, batch_size=8, device="cuda")
        say("a few speeds, in the same run")
        print(speed_table())
    say("done")


if __name__ == "__main__":
    main()
