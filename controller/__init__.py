"""The controller: watches a fleet, decides with ``placer``, and acts. Nothing lives here yet."""
