"""CALVIN ABC-D on PyBullet: scenes, control, camera, oracle and protocol, without CALVIN's own code."""
