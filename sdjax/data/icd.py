"""Codes of the International Classification of Diseases, as data sets of medical coding write them.

References:
  Mullenbach et al., Explainable Prediction of Medical Codes from Clinical Text (CAML), 2018
  (https://arxiv.org/abs/1802.05695).
"""


def with_point(code: str, version: int, diagnosis: bool) -> str:
    """A code with its point, which databases leave out.

        4019 -> 401.9    E8120 -> E812.0    V1582 -> V15.82    0066 -> 00.66 (a procedure)

    Without points, codes of diagnoses and of procedures would be mistaken for each other.
    Procedures of ICD-10 have none.

    Args:
      code: with or without a point; leading zeros count.
      version: 9 or 10.
      diagnosis: whether it is of a diagnosis, or else of a procedure.
    """
    code = code.replace(".", "")
    if not diagnosis:
        return f"{code[:2]}.{code[2:]}" if version == 9 else code
    head = 4 if version == 9 and code.startswith("E") else 3
    return f"{code[:head]}.{code[head:]}" if len(code) > head else code
