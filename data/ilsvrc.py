ILSVRC_ROOT = ""
class ILSVRCDetection: pass
