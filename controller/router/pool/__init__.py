"""The engines that a front can send to: where their ranks answer, and how loaded they are."""
