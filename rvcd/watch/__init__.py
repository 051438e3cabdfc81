"""Hot folders: told of touched files by the system, sure only of what a look at the disk shows.

scanner  which stems are there, and which changed      gate     when a bounce is finished
ledger   which stems are no new bounces                doorbell  where to look sooner
folder   all of it, one step at a time
"""

from rvcd.watch.folder import Counts, HotFolder, Ready
from rvcd.watch.gate import Gate, HeaderComplete, Holds, Refused, Settled
from rvcd.watch.ledger import Kind, Ledger

__all__ = ["Counts", "Gate", "HeaderComplete", "Holds", "HotFolder", "Kind", "Ledger", "Ready", "Refused", "Settled"]
