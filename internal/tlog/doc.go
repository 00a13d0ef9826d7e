// Package tlog is the log that is written before a key is used: an append-only
// Merkle tree (RFC 6962) in the database, with C2SP checkpoints, tiles and
// proofs. docs/SPEC-LOG.md describes what leaves the house.
//
// # Committed, then included
//
// Append writes a leaf in the caller's transaction: the leaf exists if and only
// if the record that it is about exists. It is then committed. It is included
// once it lies under a published checkpoint; Wait returns then, and nobody may
// act on a leaf before.
//
// # Order
//
//  1. commit: leaf, index, full tiles and head
//  2. second place: the text of the new checkpoint replaces the last one, by
//     compare-and-swap, fsynced, outside of what a backup of the database holds
//  3. sign the text
//  4. publish: proofs and waiters see it
//
// What a crash leaves behind, at each step:
//
//   - before 1: nothing. The caller's record is gone with its leaf.
//   - between 1 and 2: a database ahead of the second place. Open finds that
//     the second place's tree is a prefix of the database's and goes on with 2.
//   - within 2: the old text or the new one, whole. Both are a prefix.
//   - between 2 and 3, or 3 and 4: equal trees and no checkpoint in anybody's
//     hands. Open signs the same text again.
//
// The second place holds the unsigned text, since a signature of a tree that
// the second place has not seen must not exist, not even inside this process:
// the signer may be a remote one with a memory of its own. Ed25519 gives the
// same signature for the same text, so nothing is lost by making it again, and
// no checkpoint is stored in the database.
//
// A new log first claims the second place with the checkpoint of the empty tree
// and only then commits its genesis leaf. So a database with leaves and no
// second place is never the trace of a crash. Either place was lost, and Open
// does not guess which.
//
// # Refusal
//
// A database that is behind its second place was restored from a backup, and
// going on would give two trees to the world. Open then returns a log that can
// be read but appends and signs nothing; Refusal says why. [Log.Adopt] is the
// way out when the second place itself was lost.
//
// # One writer
//
// On SQLite a leaf gets its index when it is inserted, by the one goroutine
// that writes; tiles and head follow at the end of the same commit group. On
// PostgreSQL leaves wait in log_pending, and each process that has committed
// some runs a pass under an advisory lock: it follows what others sequenced,
// takes all that is pending, and replaces the head only where it still is the
// head that the pass began with. That comparison of size and root is the fence:
// a sequencer that was suspended cannot write over a newer tree, whatever
// became of its lock. A leaf whose process died before its pass is taken by the
// next pass of any process.
//
// # What is stored
//
// Full tiles and leaves; both are written once. The tree's right edge is in
// memory and rebuilt from them by Open, so that an append writes one row and
// not the tiles that it touches. A tile that is read from the database is
// compared with the node above it, up to the edge, before anything is made of
// it; a proof is verified against the published root before it leaves. So a
// leaf, tile or head edited by hand is found when it is used, and by Fsck
// wherever it is.
package tlog
