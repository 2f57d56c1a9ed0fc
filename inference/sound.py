"""Put a video's sound beside its new pictures."""

import subprocess

from inference.ffmpeg import as_input, last_words, start

# Sound that both the container holds and browsers play is copied; anything else becomes AAC. Matroska holds all.
COPIED = {"mp4": {"aac", "mp3", "opus", "flac"}, "mov": {"aac", "mp3", "alac"}}
# Sound that begins less than this before the first picture begins with it (the rest is cut off, in seconds). Most often
# it's the encoder's own lead-in, which nobody hears.
LEAD = 0.1


def add_sound(writer, pictures, container):
    """Join finished pictures with the sound of the video they were made from.

    Pictures and sound keep the distance they have in the source. The sound runs to its own end, or, where the pictures
    are fewer than the source's (Ctrl-C, a broken-off file), to theirs.

    Args:
        writer: VideoWriter whose pictures are finished.
        pictures: Path of the file with the pictures.
        container: ffmpeg's name of the output's format.
    Returns:
        path: file with both, or `pictures` where the sound can't be kept.
        note: a line for the user where it could not be kept as it is, else None.
    """
    source = writer.source
    info = source.info
    lead = info.picture_start - info.sound_start
    delay = lead if lead > LEAD else 0.0  # the pictures wait for the sound that comes before them
    origin = info.picture_start - delay
    whole = source.complete and not source.missing
    until = [] if whole else ["-t", f"{delay + float(writer.frames / writer.rate):.6f}"]
    codecs = [[f"-c:a:{track}", wanted(codec, container)] for track, codec in enumerate(info.sound)]
    for choice in (sum(codecs, []), ["-c:a", "aac"]):
        target = writer.temporary()
        process = start(
            ["-y", "-nostdin", "-loglevel", "error", "-copyts"]
            + ["-itsoffset", f"{delay:.6f}", "-i", as_input(pictures)]
            + ["-itsoffset", f"{-origin:.6f}", "-i", as_input(info.path)]
            + ["-map", "0:v:0", "-map", "1:a", "-c:v", "copy", *choice, *until]
            + ["-map_metadata", "-1", "-map_chapters", "-1", "-movflags", "+faststart", "-f", container]
            + [as_input(target)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        _, log = process.communicate()
        if process.returncode == 0:
            return target, None
    reason = last_words(log.decode("utf-8", "replace").splitlines())
    return pictures, f"the sound could not be kept: {reason}"


def wanted(codec, container):
    """Name of the encoder for a sound track, or `copy`."""
    return "copy" if container == "matroska" or codec in COPIED[container] else "aac"
