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
        augmented = [float(row["accuracy_tta"]) for row in draws if row.get("accuracy_tta")]
        accuracy = f"**{sum(accuracies) / len(draws):.1%}**"
        if len(augmented) == len(draws):
            accuracy += f", {sum(augmented) / len(draws):.1%} with TTA"
        spread = f"{min(accuracies):.1%} to {max(accuracies):.1%}" if len(draws) > 1 else "–"
        time = f"{mean(draws, 'seconds'):.0f} s"
        if draws[0]["threads"] == "1":
            time = "one thread of a busy machine"
        lines.append(
            f"{int(key[0]):,} | `{key[1]}` | {len(draws)} | {accuracy} of {int(draws[0]['test_images']):,} "
            f"| {spread} | {time} | {key[2]}"
        )
    titles = "training images a class | recipe | draws | accuracy, of so many others | range | time | on"
    return table(titles, lines)


def decoding(tables: Tables) -> str:
    """Write how fast photos are read into the cache, beside a DataLoader, and read from it again."""
    row = tables["decoding"][-1]
    ours, theirs = float(row["ours_s"]), float(row["loader_s"])
    return (
        f"{int(row['count']):,} JPEG files of 500×375, read at {row['side']} pixels, are in the cache after "
        f"{ours:.0f} s, near copies looked for. A DataLoader with {row['workers']} workers and Pillow's full "
        f"decode takes {theirs:.0f} s, **{row['ratio']} times** as long. A second start reads the cache in "
        f"{row['second_start_s']} s ({row['hardware']}, {row['threads']} threads)."
    )
