package signing

import "testing"

// Whoever waited leaves nothing behind, also where the change was another
// replica's and nobody here was told of it.
func TestWaitersLeave(t *testing.T) {
	t.Parallel()
	s := &Service{waiters: make(map[string]*waiters)}
	first, leaveFirst := s.waiter("a")
	_, leaveSecond := s.waiter("a")
	leaveFirst()
	if len(s.waiters) != 1 {
		t.Fatal("the second one is no longer told")
	}
	s.changed("a")
	select {
	case <-first:
	default:
		t.Error("the change was not told")
	}
	third, leaveThird := s.waiter("a")
	leaveSecond() // of the channel before
	if s.changed("a"); len(s.waiters) != 0 {
		t.Error("an entry is left behind a change")
	}
	select {
	case <-third:
	default:
		t.Error("the third one was forgotten when the second left")
	}
	leaveThird()
	_, leave := s.waiter("b")
	if leave(); len(s.waiters) != 0 {
		t.Error("an entry is left behind the one who waited")
	}
}
