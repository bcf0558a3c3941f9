"""The grid on which tests show the template's brain as some scanner may."""

import nibabel as nib
import numpy as np

SHAPE = (72, 92, 92)
AFFINE = nib.affines.from_matvec(np.diag([2.0, 2.0, 2.0]), [-71.0, -108.0, -84.0])
