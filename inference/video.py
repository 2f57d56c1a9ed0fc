"""Videos in and out: VideoReader and VideoWriter on the ffmpeg of imageio-ffmpeg."""

from inference.decoding import VideoReader
from inference.encoding import VideoWriter

__all__ = ["VideoReader", "VideoWriter"]
