package tlog

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/alg"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/problem"
)

// Options of a log. All but Logger are needed.
type Options struct {
	// Origin names the log for ever: the first line of each checkpoint and the
	// name of its key. It carries a random id, so that no two workspaces share
	// one.
	Origin string
	// Signer signs checkpoints, under the name Origin.
	Signer note.Signer
	// VKey is the public half of Signer in note form. The log keeps its own
	// copy, to check the signer against.
	VKey string
	// Second remembers the last checkpoint apart from the database.
	Second SecondPlace
	// Logger gets trouble with the second place. Default: slog.Default().
	Logger *slog.Logger

	// TestOnlyStep is called at each labelled step of the order of the log:
	// "claimed", "committed", "swapped", "signed", "published". A crash test
	// ends the process there.
	TestOnlyStep func(label string)
}

// Log is an open log. It is safe for concurrent use.
type Log struct {
	db       *db.DB
	origin   string
	verifier note.Verifier
	keyID    string
	signer   note.Signer
	second   SecondPlace
	logger   *slog.Logger
	step     func(string)

	// fresh are the leaves of the commit group that is open, on SQLite. Owned by
	// the database's writer, which runs Append and sequence.
	fresh []*row

	// committed is the durable tree. It is grown by the database's writer on
	// SQLite and by run on PostgreSQL; everybody may read it.
	committed atomic.Pointer[tree]

	// place is the text that the second place holds. Owned by run; by Open and
	// Adopt before they start it.
	place []byte

	// mu guards the replacement of pub and refusal, which are read without it.
	mu      sync.Mutex
	pub     atomic.Pointer[published]
	refusal atomic.Pointer[problem.Error]
	// trouble is why the last attempt to publish failed; it is tried again.
	trouble atomic.Pointer[problem.Error]

	recent recent
	tiles  tileCache

	wake   chan struct{} // to run: there may be something to include
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
	adopt  sync.Mutex // held by Adopt
}

// published is a tree with its signed checkpoint. It never changes.
type published struct {
	tree       tree
	root       tlog.Hash
	checkpoint []byte        // nil before the first
	next       chan struct{} // closed when this is no longer what counts
}

// Pending is a leaf that a transaction has written. ID is stored by callers
// that ask for the leaf's proof later; it is made of the leaf's bytes.
type Pending struct {
	ID string
}

// Open opens the log in d, or begins it with a genesis leaf when d holds none.
// It returns after the tree that it found is published.
//
// When database and second place contradict each other, Open succeeds and the
// log refuses to append and sign: see Refusal. An error means that the log
// cannot even be read now.
func Open(ctx context.Context, d *db.DB, o Options) (*Log, error) {
	l := &Log{
		db: d, origin: o.Origin, signer: o.Signer, second: o.Second, logger: o.Logger, step: o.TestOnlyStep,
		wake: make(chan struct{}, 1),
	}
	if l.logger == nil {
		l.logger = slog.Default()
	}
	if l.step == nil {
		l.step = func(string) {}
	}
	if err := l.useKey(o.VKey); err != nil {
		return nil, err
	}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.committed.Store(&tree{})
	l.pub.Store(&published{next: make(chan struct{})})
	if d.Engine() == db.SQLite {
		d.BeforeCommit(l.sequence)
	}
	err := l.begin(ctx)
	if err == nil {
		err = l.publish(ctx)
	}
	if err == nil {
		err = l.checkSigner()
	}
	switch {
	case err == nil:
		l.wg.Go(l.run)
	case final(err):
		l.refuse(problem.Of(err))
	default:
		l.closed.Store(true)
		l.stop()
		return nil, err
	}
	return l, nil
}

// useKey reads the public key and compares it with the signer.
func (l *Log) useKey(vkey string) error {
	bad := problem.New(problem.BadRequest, "log %q cannot be opened", l.origin)
	if l.origin == "" || len(l.origin) > 255 || strings.ContainsAny(l.origin, "\n+ ") {
		return bad.Seen("its origin is not a name of at most 255 bytes without space or plus")
	}
	if l.signer == nil || l.second == nil {
		return bad.Seen("it has no signer or no second place")
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return bad.Seen("its verifier key cannot be read").Because(err)
	}
	if v.Name() != l.origin || l.signer.Name() != l.origin || l.signer.KeyHash() != v.KeyHash() {
		return bad.Seen("its keys are named %q (%08x) and %q (%08x)", v.Name(), v.KeyHash(), l.signer.Name(), l.signer.KeyHash())
	}
	// NewVerifier took it, so it is name+hash+base64(0x01 ‖ public key).
	_, enc, _ := strings.Cut(vkey[len(l.origin)+1:], "+")
	raw, err := base64.StdEncoding.DecodeString(enc)
	if err != nil || len(raw) != 1+ed25519.PublicKeySize {
		return bad.Seen("its verifier key is not Ed25519")
	}
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(raw[1:]))
	if err != nil {
		return bad.Because(err)
	}
	l.verifier, l.keyID = v, alg.KeyID(spki)
	return nil
}

// final says that trying again does not help: the log refuses.
func final(err error) bool {
	switch problem.Of(err).Code {
	case problem.LogBehind, problem.LogForked, problem.LogPlaceMissing, problem.LogAltered:
		return true
	}
	return false
}

func (l *Log) refuse(p *problem.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refusal.CompareAndSwap(nil, p) {
		l.logger.Error("the log refuses to go on", "code", string(p.Code), "what", p.What, "why", p.Why)
		l.replace(*l.pub.Load())
	}
}

// replace makes p what counts and wakes all that wait. The caller holds mu.
func (l *Log) replace(p published) {
	old := l.pub.Load()
	p.next = make(chan struct{})
	l.pub.Store(&p)
	close(old.next)
}

// Refusal is why the log appends and signs nothing, or nil. It can be LOG.BEHIND,
// LOG.FORKED, LOG.SECOND_PLACE_MISSING or LOG.ALTERED.
func (l *Log) Refusal() error {
	if p := l.refusal.Load(); p != nil {
		return p
	}
	return nil
}

// ready is asked before anything is added.
func (l *Log) ready() error {
	if l.closed.Load() {
		return problem.New(problem.LogClosed, "log %s is closed", l.origin)
	}
	return l.Refusal()
}

// Close stops the log's goroutine. What is committed and not yet included is
// included by the next Open.
func (l *Log) Close() error {
	l.closed.Store(true)
	l.stop()
	l.wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replace(*l.pub.Load())
	return nil
}

// Origin is the log's name.
func (l *Log) Origin() string { return l.origin }

// Verifier checks the log's checkpoints.
func (l *Log) Verifier() note.Verifier { return l.verifier }

// Size is the number of published leaves.
func (l *Log) Size() int64 { return l.pub.Load().tree.size }

// Checkpoint is the published checkpoint, a signed note. A log that refuses
// since it was opened has none, and gives its refusal.
func (l *Log) Checkpoint(context.Context) ([]byte, error) {
	p, err := l.published()
	if err != nil {
		return nil, err
	}
	return bytes.Clone(p.checkpoint), nil
}

func (l *Log) published() (*published, error) {
	p := l.pub.Load()
	if p.checkpoint == nil {
		if err := l.Refusal(); err != nil {
			return nil, err
		}
		return nil, problem.New(problem.LogNotIncluded, "log %s has published nothing yet", l.origin)
	}
	return p, nil
}

// Append writes a leaf in tx. V and Time are set when they are zero. The leaf
// is committed with tx and not before; call Wait after tx.
//
// It must be the tx of an Update of the log's own database. A leaf above 48 KiB
// or with text that is not UTF-8 is LOG.LEAF_REFUSED; a log that refuses gives
// its refusal.
func (l *Log) Append(tx *db.Tx, leaf firmseal.Leaf) (Pending, error) {
	if err := l.ready(); err != nil {
		return Pending{}, err
	}
	if leaf.V == 0 {
		leaf.V = 1
	}
	if leaf.Time == 0 {
		leaf.Time = db.Now()
	}
	r, err := newRow(&leaf)
	if err != nil {
		return Pending{}, err
	}
	if l.db.Engine() == db.Postgres {
		err = l.appendPostgres(tx, r)
	} else {
		err = l.appendSQLite(tx, r)
	}
	return Pending{r.id}, err
}

// Wait returns the leaf's index when the leaf is included: under a checkpoint
// that is in the second place, signed and published. It can be called for any
// leaf that was ever committed, after a restart too.
//
// When ctx ends first, the error is LOG.NOT_INCLUDED, or LOG.SECOND_PLACE when
// that is what it waits for. The leaf stays committed and will be included.
func (l *Log) Wait(ctx context.Context, p Pending) (int64, error) {
	idx, known := int64(0), false
	for {
		pub := l.pub.Load()
		if !known {
			if idx, known = l.recent.index(p.ID); !known {
				var err error
				if idx, known, err = l.lookup(ctx, p.ID); err != nil {
					return 0, err
				}
			}
		}
		if known && idx < pub.tree.size {
			return idx, nil
		}
		if err := l.ready(); err != nil {
			return 0, err
		}
		select {
		case <-pub.next:
		case <-ctx.Done():
			if t := l.trouble.Load(); t != nil {
				return 0, t
			}
			return 0, problem.New(problem.LogNotIncluded, "leaf %s is committed and not yet included", p.ID).
				Seen("gave up waiting").Because(ctx.Err())
		}
	}
}

// lookup finds a leaf's index in the database; known is false for a leaf that
// waits to be sequenced.
func (l *Log) lookup(ctx context.Context, id string) (idx int64, known bool, err error) {
	err = l.db.View(ctx, func(tx *db.Tx) error {
		err := tx.QueryRow(`SELECT idx FROM log_leaf WHERE id = $1 ORDER BY idx LIMIT 1`, id).Scan(&idx)
		known = err == nil
		if !errors.Is(err, db.ErrNotFound) {
			return err
		}
		if tx.Engine() == db.Postgres {
			err = tx.QueryRow(`SELECT seq FROM log_pending WHERE id = $1 LIMIT 1`, id).Scan(new(int64))
		}
		if errors.Is(err, db.ErrNotFound) {
			return noLeaf("id %.64q", id)
		}
		return err
	})
	return idx, known, err
}

func noLeaf(format string, a ...any) error {
	return problem.New(problem.NotFound, "no leaf with "+format, a...).WithHint("list the log: firmseal log list")
}

const (
	// tick is how often a process on PostgreSQL looks for leaves of others
	// whose process died between its commit and its pass.
	tick = 2 * time.Second
	// The pause after a failure doubles from pauseMin; a second place on a disk
	// that came back is noticed within pauseMax.
	pauseMin = 50 * time.Millisecond
	pauseMax = 2 * time.Second
)

// run includes what was committed, until the log is closed or refuses. What was
// committed while it works on one checkpoint comes under the next one: load
// makes the batches larger.
func (l *Log) run() {
	var poll <-chan time.Time
	if l.db.Engine() == db.Postgres {
		t := time.NewTicker(tick)
		defer t.Stop()
		poll = t.C
	}
	pause := pauseMin
	for {
		select {
		case <-l.wake:
		case <-poll:
		case <-l.ctx.Done():
			return
		}
		for {
			err := l.include(l.ctx)
			if l.ctx.Err() != nil {
				return
			}
			if err == nil {
				l.trouble.Store(nil)
				pause = pauseMin
				break
			}
			if final(err) {
				l.refuse(problem.Of(err))
				return
			}
			l.trouble.Store(problem.Of(err))
			l.logger.Warn("the log cannot publish now and tries again", "err", err, "cause", errors.Unwrap(err), "pause", pause)
			select {
			case <-time.After(pause):
			case <-l.ctx.Done():
				return
			}
			pause = min(2*pause, pauseMax)
		}
	}
}

func (l *Log) include(ctx context.Context) error {
	if l.db.Engine() == db.Postgres {
		if err := l.pass(ctx); err != nil {
			return err
		}
	}
	return l.publish(ctx)
}

// wakeRun is called after a commit.
func (l *Log) wakeRun() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// publish brings the committed tree to the second place, signs it and makes it
// what counts: steps 2 to 4 of the package comment.
func (l *Log) publish(ctx context.Context) error {
	t := l.committed.Load()
	if p := l.pub.Load(); p.checkpoint != nil && p.tree.size == t.size {
		return nil
	}
	l.step("committed") // a crash here leaves the database ahead of the second place
	text := headText(l.origin, t.size, t.root())
	// Swap is called even where the place holds the text already: whoever wrote
	// it may have died, or been told of an error, before it was synced.
	for tries := 0; ; tries++ {
		err := l.second.Swap(ctx, l.place, text)
		if err == nil {
			l.place = text
			break
		}
		if !errors.Is(err, ErrMoved) || tries == 8 {
			return placeTrouble(err)
		}
		// Another process of this log was faster, or an earlier Swap of ours
		// did more than it could tell.
		if t, err = l.moved(ctx); err != nil {
			return err
		}
		text = headText(l.origin, t.size, t.root())
	}
	l.step("swapped") // a crash here leaves equal trees and no checkpoint; Open signs the same text
	signed, err := note.Sign(&note.Note{Text: string(text)}, l.signer)
	if err != nil {
		return problem.New(problem.Unavailable, "the checkpoint of size %d cannot be signed", t.size).
			WithHint("look at the log key").Because(err)
	}
	l.step("signed") // as before: nobody has seen the signature
	l.mu.Lock()
	l.replace(published{tree: *t, root: t.root(), checkpoint: signed})
	l.mu.Unlock()
	l.step("published")
	return nil
}

func placeTrouble(err error) error {
	if errors.Is(err, ErrDamaged) {
		return problem.New(problem.LogForked, "the log's second place is damaged").Seen("%v", err).
			WithHint("bring the file back").Because(err)
	}
	return problem.New(problem.LogPlace, "the log's second place does not answer").Seen("%v", err).
		WithHint("look at the disk and the rights of the file").Because(err)
}

// moved takes notice of a second place that holds another text than ours. It
// gives the committed tree, which on PostgreSQL may have grown by others.
func (l *Log) moved(ctx context.Context) (*tree, error) {
	text, err := l.second.Load(ctx)
	if err != nil {
		return nil, placeTrouble(err)
	}
	if l.db.Engine() == db.Postgres {
		// Read after the second place, the database is at least as new.
		if err := l.pass(ctx); err != nil {
			return nil, err
		}
	}
	t := l.committed.Load()
	if err := l.compare(ctx, *t, text); err != nil {
		return nil, err
	}
	l.place = text
	return t, nil
}

// compare checks that the second place's tree is a prefix of t.
func (l *Log) compare(ctx context.Context, t tree, text []byte) error {
	if text == nil {
		return problem.New(problem.LogPlaceMissing, "the second place of log %s is missing", l.origin).
			Seen("the database holds %d leaves and nothing says that these are all", t.size).
			WithHint("bring the file back; if it is lost and this database is the newest: firmseal log recover")
	}
	origin, size, root, err := parseText(text)
	if err != nil {
		return problem.New(problem.LogForked, "the second place of log %s is damaged", l.origin).Seen("%v", err).
			WithHint("bring the file back")
	}
	if origin != l.origin {
		return problem.New(problem.LogForked, "the second place belongs to another log").
			Seen("it is of %q, this is %q", origin, l.origin).WithHint("give each workspace its own second place")
	}
	if size > t.size {
		return problem.New(problem.LogBehind, "the database is older than the log that it holds").
			Seen("the second place has seen %d leaves, the database has %d", size, t.size).
			WithHint("bring back the newest database; an older one must not go on")
	}
	got, err := tlog.TreeHash(size, l.reader(ctx, t))
	if err != nil {
		return err
	}
	if got != root {
		return problem.New(problem.LogForked, "the database and the second place have different logs").
			Seen("at %d leaves the database makes root %s, the second place says %s", size, got, root).
			WithHint("find out which of two copies went on: firmseal log verify")
	}
	return nil
}

// checkSigner verifies the first checkpoint that the signer made, so that a
// signer with another key is found before anybody relies on it.
func (l *Log) checkSigner() error {
	if _, err := note.Open(l.pub.Load().checkpoint, note.VerifierList(l.verifier)); err != nil {
		return problem.New(problem.Internal, "the log key made a signature that does not verify").Because(err)
	}
	return nil
}

// Adopt is the recovery from a second place that was lost for good: it verifies
// the whole log from index 0, takes the database's tree as the newest, writes
// it to the second place, and logs who decided so. It works on a log that
// refuses with LOG.SECOND_PLACE_MISSING only.
//
// It cannot know whether the database is the newest. If it is not, the world
// sees two logs, and every device and monitor that remembers the other one
// refuses this.
func (l *Log) Adopt(ctx context.Context, actor string) error {
	l.adopt.Lock()
	defer l.adopt.Unlock()
	if p := l.refusal.Load(); p == nil || p.Code != problem.LogPlaceMissing {
		e := problem.New(problem.Conflict, "log %s needs no second place", l.origin)
		if p != nil {
			e = e.Seen("it refuses for another reason: %s", p.What).WithHint("%s", p.Next)
		}
		return e
	}
	if _, err := l.fsck(ctx, false); err != nil {
		return err
	}
	t := l.committed.Load()
	text := headText(l.origin, t.size, t.root())
	// A crash after this leaves a log that opens, without the leaf that tells of
	// the recovery. The server's log tells of it.
	l.logger.WarnContext(ctx, "the second place is made anew from the database", "actor", actor, "size", t.size)
	if err := l.second.Swap(ctx, nil, text); err != nil {
		return placeTrouble(err)
	}
	l.place = text
	if err := l.publish(ctx); err != nil {
		return err
	}
	if err := l.checkSigner(); err != nil {
		return err
	}
	l.refusal.Store(nil)
	l.wg.Go(l.run)
	root := t.root()
	var p Pending
	err := l.db.Update(ctx, func(tx *db.Tx) error {
		var err error
		p, err = l.Append(tx, firmseal.Leaf{
			Type: firmseal.LeafRecover, Actor: actor, Record: fmt.Sprintf("%x", root[:]), Subject: l.origin,
		})
		return err
	})
	if err != nil {
		return err
	}
	_, err = l.Wait(ctx, p)
	return err
}
