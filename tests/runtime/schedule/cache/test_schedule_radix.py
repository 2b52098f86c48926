import numpy as np
import pytest

from appliance.runtime.schedule.cache.radix import HOT_MOST, Int32s, Node, Radix


def ids(*values: int) -> Int32s:
    return np.array(values, dtype=np.int32)


def put(tree: Radix, tokens: Int32s, pages: Int32s, namespace: str = "") -> Node:
    root, _ = tree.match(namespace, tokens[:0])
    node, _ = tree.insert(root, tokens, pages)
    return node


def test_an_empty_tree_matches_nothing() -> None:
    tree = Radix(2)
    assert tree.find("", ids(1, 2, 3)) == (None, 0)
    assert tree.match("", ids(1, 2, 3))[1].tolist() == []


def test_the_longest_beginning_in_whole_pages_is_found() -> None:
    tree = Radix(2)
    put(tree, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12))
    assert tree.find("", ids(1, 2, 3, 4, 5))[1] == 4
    assert tree.find("", ids(1, 2, 3, 9, 5, 6))[1] == 2
    assert tree.find("", ids(1, 9))[1] == 0
    assert tree.match("", ids(1, 2, 3, 4, 7, 7))[1].tolist() == [10, 11]


def test_a_match_that_ends_inside_an_edge_splits_it() -> None:
    tree = Radix(2)
    lower = put(tree, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12))
    upper, pages = tree.match("", ids(1, 2))
    assert pages.tolist() == [10]
    assert lower.parent is upper and lower.pages.tolist() == [11, 12]
    assert tree.cached == 3


def test_find_changes_nothing() -> None:
    tree = Radix(1)
    node = put(tree, ids(1, 2, 3), ids(10, 11, 12))
    tree.find("", ids(1, 2))
    assert [n for n in tree.nodes()] == [node]


def test_namespaces_share_nothing() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2), ids(10, 11), "a")
    assert tree.find("b", ids(1, 2))[1] == 0
    assert tree.find("a", ids(1, 2))[1] == 2


def test_insert_says_which_pages_the_tree_had() -> None:
    tree = Radix(2)
    put(tree, ids(1, 2, 3, 4), ids(10, 11))
    root, _ = tree.match("", ids())
    node, theirs = tree.insert(root, ids(1, 2, 3, 4, 5, 6), ids(20, 21, 22))
    assert theirs.tolist() == [10, 11]
    assert node.pages.tolist() == [22]
    assert tree.cached == 3


def test_a_lock_holds_the_whole_path() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2, 3), ids(10, 11, 12))
    node, _ = tree.match("", ids(1, 2))
    tree.lock(node)
    assert (tree.cached, tree.locked, tree.evictable) == (3, 2, 1)
    assert tree.evict(9).tolist() == [12]
    tree.unlock(node)
    assert sorted(tree.evict(9).tolist()) == [10, 11]
    assert tree.cached == tree.locked == 0


def test_a_split_keeps_the_locks_of_what_lies_below() -> None:
    tree = Radix(1)
    low = put(tree, ids(1, 2, 3), ids(10, 11, 12))
    tree.lock(low)
    upper, _ = tree.match("", ids(1))
    assert upper.locks == 1 and tree.locked == 3
    tree.unlock(low)
    assert upper.locks == 0 and tree.locked == 0


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2), ids(10, 11))
    put(tree, ids(5, 6), ids(20, 21))
    tree.match("", ids(1, 2))
    assert tree.evict(2).tolist() == [20, 21]
    assert tree.evict(1).tolist() == [11]


def test_a_touch_counts_as_use() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2), ids(10, 11))
    put(tree, ids(5, 6), ids(20, 21))
    tree.find("", ids(1, 2), touch=True)
    assert tree.evict(2).tolist() == [20, 21]


def test_eviction_cuts_a_leaf_from_its_end() -> None:
    tree = Radix(2)
    put(tree, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12))
    assert tree.evict(1).tolist() == [12]
    assert tree.find("", ids(1, 2, 3, 4, 5, 6))[1] == 4


def test_a_parent_goes_after_its_children() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2, 3), ids(10, 11, 12))
    put(tree, ids(1, 2, 4), ids(20, 21, 13))
    assert sorted(tree.evict(2).tolist()) == [12, 13]
    assert tree.evict(5).tolist() == [10, 11]


def test_a_namespace_that_holds_nothing_is_forgotten() -> None:
    tree = Radix(1)
    for number in range(20):
        node, _ = tree.match(str(number), ids(1))
        tree.lock(node)
        tree.unlock(node)
    put(tree, ids(1), ids(10), "kept")
    tree.evict(1)
    assert not tree._roots and not tree._names


def test_prune_takes_only_what_nothing_else_needs() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2, 3), ids(10, 11, 12))
    other = put(tree, ids(1, 2, 4), ids(20, 21, 13))
    node, _ = tree.match("", ids(1, 2, 3))
    assert tree.prune(node).tolist() == [12]
    assert sorted(tree.prune(other).tolist()) == [10, 11, 13]


def test_unlocking_what_is_not_locked_is_our_bug() -> None:
    tree = Radix(1)
    node = put(tree, ids(1), ids(10))
    with pytest.raises(AssertionError):
        tree.unlock(node)


def test_the_heavier_branch_is_walked_first() -> None:
    tree = Radix(1)
    put(tree, ids(1, 2, 3), ids(10, 11, 12))
    put(tree, ids(1, 2, 4), ids(20, 21, 13))
    put(tree, ids(7), ids(14))
    places = [tree.match("", ids(*p))[0] for p in [(7,), (1, 2, 3), (1, 2, 4), (1, 2, 4), (1, 2)]]
    assert tree.by_weight([None, *places]) == [5, 3, 4, 2, 1, 0]


def test_keys_are_compared_beyond_the_first_difference_only_to_it() -> None:
    tree = Radix(4)
    put(tree, ids(*range(16)), ids(1, 2, 3, 4))
    wanted = ids(*range(16))
    for position in range(16):
        changed = wanted.copy()
        changed[position] = 99
        assert tree.find("", changed)[1] == position // 4 * 4


def test_what_saved_most_comes_first_with_its_length_and_its_rows() -> None:
    tree = Radix(2)
    put(tree, ids(1, 2, 3, 4, 5, 6), ids(10, 11, 12))
    put(tree, ids(9, 9), ids(13))
    upper, _ = tree.match("", ids(1, 2, 3, 4))
    for _ in range(3):
        tree.hit(upper)
    lower, _ = tree.match("", ids(1, 2, 3, 4, 5, 6))
    tree.hit(lower)
    tree.lock(lower)
    first, second = tree.shared(8)
    assert (first.tokens, first.own, first.hits, first.rows) == (4, 4, 4, 1)
    assert (second.tokens, second.own, second.hits, second.rows) == (6, 2, 1, 1)
    assert first.number != second.number and tree.shared(1) == [first]


def test_a_split_keeps_the_hits_of_both_halves() -> None:
    tree = Radix(1)
    node = put(tree, ids(1, 2, 3, 4), ids(10, 11, 12, 13))
    tree.hit(node)
    upper, _ = tree.match("", ids(1, 2))
    tree.hit(upper)
    assert [(s.tokens, s.own, s.hits) for s in tree.shared(9)] == [(2, 2, 2), (4, 2, 1)]


def test_what_was_evicted_is_forgotten_and_what_is_remembered_has_a_limit() -> None:
    tree = Radix(1)
    for start in range(500):
        tree.hit(put(tree, ids(start, 7), ids(2 * start, 2 * start + 1)))
    assert len(tree.shared(10_000)) <= 2 * HOT_MOST
    tree.evict(1000)
    assert tree.shared(8) == []
