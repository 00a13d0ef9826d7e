package signing

import (
	"context"
	"errors"
	"time"

	"github.com/firmseal/firmseal"
	"github.com/firmseal/firmseal/internal/auth"
	"github.com/firmseal/firmseal/internal/db"
	"github.com/firmseal/firmseal/internal/journal"
)

// CreateToken makes an API token and its leaf. The secret is in the answer and
// nowhere else.
func (s *Service) CreateToken(ctx context.Context, who auth.Identity, name string, scopes []string, ttl time.Duration) (string, auth.Token, error) {
	sc, err := auth.ParseScopes(scopes)
	if err != nil {
		return "", auth.Token{}, err
	}
	var secret string
	var t auth.Token
	err = s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var err error
		if secret, t, err = auth.Create(tx, auth.Spec{By: who, Name: name, Scopes: sc, TTL: ttl}); err != nil {
			return firmseal.Leaf{}, err
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "token.create", Actor: who.Actor, Project: who.Project, Subject: t.ID}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafTokenCreate, Actor: who.Actor, Subject: t.ID, Record: hexSum(auth.Record(t))}, nil
	})
	return secret, t, err
}

// RevokeToken ends a token. Revoking a revoked one changes nothing.
func (s *Service) RevokeToken(ctx context.Context, who auth.Identity, id string) (auth.Token, error) {
	var t auth.Token
	err := s.logged(ctx, func(tx *db.Tx) (firmseal.Leaf, error) {
		var changed bool
		var err error
		if t, changed, err = auth.Revoke(tx, who, id); err != nil {
			return firmseal.Leaf{}, err
		}
		if !changed {
			return firmseal.Leaf{}, errUnchanged
		}
		if _, err := journal.Append(tx, journal.Event{Kind: "token.revoke", Actor: who.Actor, Project: who.Project, Subject: t.ID}); err != nil {
			return firmseal.Leaf{}, err
		}
		return firmseal.Leaf{Type: firmseal.LeafTokenRevoke, Actor: who.Actor, Subject: t.ID, Record: hexSum(auth.Record(t))}, nil
	})
	if errors.Is(err, errUnchanged) {
		return t, nil
	}
	return t, err
}

// errUnchanged rolls back a transaction that has nothing to write.
var errUnchanged = errors.New("nothing changed")
