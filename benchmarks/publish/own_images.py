"""What cifar_folders.py measured: a folder of few pictures, from the prompt to the page."""

from __future__ import annotations

from benchmarks.publish.rows import Tables, mean, table


def own_images(tables: Tables) -> str:
    """Write accuracy and time of `train FOLDER` by the number of training images a class."""
    rows = tables["cifar_folders"]
    lines = []
    for key in dict.fromkeys((row["images_a_class"], row["recipe"], row["hardware"]) for row in rows):
        draws = [row for row in rows if (row["images_a_class"], row["recipe"], row["hardware"]) == key]
        accuracies = [float(row["accuracy"]) for row in draws]
        lines.append(
            f"{key[0]} | `{key[1]}` | {len(draws)} | **{sum(accuracies) / len(draws):.1%}** "
            f"| {min(accuracies):.1%} to {max(accuracies):.1%} | {mean(draws, 'seconds'):.0f} s "
            f"| {key[2]}, {draws[0]['threads']} threads"
        )
    titles = "training images a class | recipe | draws | accuracy on 2,000 others | range | time | on"
    return table(titles, lines)


def decoding(tables: Tables) -> str:
    """Write how fast photos are read into the cache, beside a DataLoader, and read from it again."""
    row = tables["decoding"][-1]
    ours, theirs = float(row["ours_s"]), float(row["loader_s"])
    return (
        f"{int(row['count']):,} JPEG files of 500×375, read at {row['side']} pixels, are in the cache after "
        f"{ours:.0f} s, near copies looked for. A DataLoader with {row['workers']} workers and Pillow's full "
        f"decode, takes {theirs:.0f} s, **{row['ratio']} times** as long. A second start reads the cache in "
        f"{row['second_start_s']} s ({row['hardware']}, {row['threads']} threads)."
    )
