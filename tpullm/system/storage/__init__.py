"""Files on local disks and on `gs://`: `from tpullm.system import storage; storage.write_json(...)`.

paths.py: which of both a path is; folders, hashes. atomic.py: atomic writes. copies.py: local copies. keep.py: what
takes long to make. foreign.py: names and files of others. mirror.py: files that grow. gcs.py: requests to `gs://`,
imported only when one is needed.
"""

from tpullm.system.storage.atomic import (
    append,
    atomic_directory,
    atomic_file,
    check_writable,
    naming,
    read_json,
    read_tables,
    remove_partials,
    write_arrays,
    write_json,
    write_text,
)
from tpullm.system.storage.copies import (
    brief_copy,
    cache_folder,
    check_private,
    copy,
    local_copy,
    make_private,
    remove_unread_copies,
)
from tpullm.system.storage.foreign import check_file, inside, read_bounded
from tpullm.system.storage.keep import kept, shrink
from tpullm.system.storage.paths import (
    explain,
    hash_code,
    hash_file,
    hash_json,
    is_remote,
    md5s,
    move_tree,
    names,
    path,
    remote,
    remove_tree,
    room_for,
    sizes,
)
