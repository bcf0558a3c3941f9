"""What fMRIPrep and sMRIPrep leave in ``anat`` folders, release by release, and what of it an image can reuse.

Names and folders are written down from memory of their documentation: the programs themselves are not run here.
"""

MNI = "MNI152NLin2009cAsym"

_BEFORE_1_2 = (
    "PREFIX_T1w_brainmask.nii.gz", "PREFIX_T1w_preproc.nii.gz", "PREFIX_T1w_dtissue.nii.gz",
    "PREFIX_T1w_class-CSF_probtissue.nii.gz", f"PREFIX_T1w_space-{MNI}_brainmask.nii.gz",
    f"PREFIX_T1w_space-{MNI}_preproc.nii.gz", f"PREFIX_T1w_target-{MNI}_warp.h5",
    "PREFIX_T1w_target-fsnative_affine.txt", "PREFIX_run-1_T1w_space-orig_target-T1w_affine.txt",
    "PREFIX_T1w_pial.L.surf.gii",
)  # fmt: skip
_SINCE_1_2 = (
    "PREFIX_desc-brain_mask.nii.gz", "PREFIX_desc-brain_mask.json", "PREFIX_desc-preproc_T1w.nii.gz",
    "PREFIX_desc-preproc_T1w.json", "PREFIX_dseg.nii.gz", "PREFIX_label-GM_probseg.nii.gz",
    f"PREFIX_space-{MNI}_desc-brain_mask.nii.gz", f"PREFIX_space-{MNI}_desc-preproc_T1w.nii.gz",
    f"PREFIX_from-T1w_to-{MNI}_mode-image_xfm.h5", f"PREFIX_from-{MNI}_to-T1w_mode-image_xfm.h5",
    "PREFIX_from-T1w_to-fsnative_mode-image_xfm.txt", "PREFIX_from-fsnative_to-T1w_mode-image_xfm.txt",
    "PREFIX_run-1_from-orig_to-T1w_mode-image_xfm.txt", "PREFIX_hemi-L_pial.surf.gii",
)  # fmt: skip
#: With --output-spaces MNI152NLin6Asym:res-2 and sloppy, affine-only transforms, as sMRIPrep's tests make them.
_RES = tuple(name.replace(f"space-{MNI}_", "space-MNI152NLin6Asym_res-2_").replace(MNI, "MNI152NLin6Asym")
             for name in _SINCE_1_2)  # fmt: skip
_OLD = {
    "mask": "PREFIX_T1w_brainmask.nii.gz", "mask_xfm": "PREFIX_run-1_T1w_space-orig_target-T1w_affine.txt",
    "xfm": f"PREFIX_T1w_target-{MNI}_warp.h5", "xfm_orig": "PREFIX_run-1_T1w_space-orig_target-T1w_affine.txt",
}  # fmt: skip
_NEW = {
    "mask": "PREFIX_desc-brain_mask.nii.gz", "mask_xfm": "PREFIX_run-1_from-orig_to-T1w_mode-image_xfm.txt",
    "xfm": f"PREFIX_from-T1w_to-{MNI}_mode-image_xfm.h5",
    "xfm_orig": "PREFIX_run-1_from-orig_to-T1w_mode-image_xfm.txt",
}  # fmt: skip


def _description(version, **fields):
    return {"Name": "fMRIPrep - fMRI PREProcessing workflow", "BIDSVersion": version} | fields


#: What ``dataset_description.json`` said.
DESCRIPTIONS = {
    "fMRIPrep 1.1": _description("1.1.1", PipelineDescription={"Name": "fMRIPrep", "Version": "1.1.8"}),
    "fMRIPrep 1.5": _description("1.1.1", PipelineDescription={"Name": "fMRIPrep", "Version": "1.5.10"}),
    "fMRIPrep 20.2": _description("1.4.0", DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep"}]),
    "fMRIPrep 23.2": _description("1.4.0", DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep"}]),
    "fMRIPrep 25.0": _description("1.4.0", DatasetType="derivative", DatasetLinks={"raw": "/data"}),
    "sMRIPrep 0.12": _description("1.4.0", DatasetType="derivative", GeneratedBy=[{"Name": "sMRIPrep"}]),
    "sMRIPrep, legacy layout": None,
}
#: Release: (folder below the one that is named, files of an anat folder), what an image of run 1 reuses.
RELEASES = {
    "fMRIPrep 1.1": (("fmriprep/", _BEFORE_1_2), _OLD),
    "fMRIPrep 1.5": (("", _SINCE_1_2), _NEW),
    "fMRIPrep 20.2": (("fmriprep/", _SINCE_1_2), _NEW),
    "fMRIPrep 23.2": (("", _SINCE_1_2), _NEW),
    "fMRIPrep 25.0": (("", (*_SINCE_1_2, "PREFIX_run-1_from-T1w_to-orig_mode-image_xfm.txt")), _NEW),
    "sMRIPrep 0.12": (("", _RES), {**_NEW, "xfm": "PREFIX_from-T1w_to-MNI152NLin6Asym_mode-image_xfm.h5"}),
    "sMRIPrep, legacy layout": (("smriprep/", _SINCE_1_2), _NEW),
}


def placed(tree, session=None):
    """Paths of a release's files for sub-01, with or without a session."""
    folder, files = tree
    below, prefix = (f"ses-{session}/anat", f"sub-01_ses-{session}") if session else ("anat", "sub-01")
    return [f"{folder}sub-01/{below}/{name.replace('PREFIX', prefix)}" for name in files]
