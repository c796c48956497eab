/* One requests partition, its journal, two service processes, Kafka's group and VCDA, as one guarded-command machine.
   Every option of the loop is one atomic step. Time is kept as ages that saturate, so there is no horizon.
   Each rule is a macro; check.py sets them. README.md says what each means. */

/* bounds */
#ifndef NREQ
#define NREQ 2          /* requests 0 and 1 are of replication A; 2, where present, of B */
#endif
#ifndef NF
#define NF 2            /* faults: crash, silence, lost POST, lost answer, lost commit ack, epoch bumped by the coordinator */
#endif
#ifndef FM
#define FM 63           /* which: 1 crash, 2 silence, 4 lost POST, 8 lost answer, 16 lost commit ack, 32 epoch bumped,
                           with ACC 64 account replaced, with TOPIC 128 topic replaced, with JOURNAL 256 journal emptied */
#endif
#ifndef NDL
#define NDL 0           /* deadlines that may pass; 9: without bound */
#endif
#ifndef NREJ
#define NREJ 0          /* POSTs that VCDA may refuse for good */
#endif
#ifndef W
#define W 1             /* submit window */
#endif
#ifndef D
#define D 1             /* a POST that began is with VCDA after at most D, or never */
#endif
#ifndef WAIT_W
#define WAIT_W W        /* what the waiting side believes W and D are */
#endif
#ifndef WAIT_D
#define WAIT_D D
#endif
#ifndef MORE
#define MORE 0          /* by how much process 0's D is longer: it still has the settings from before a rollout */
#endif
#ifndef DUNB
#define DUNB 0          /* 1: a POST may arrive at any later time */
#endif
#ifndef K
#define K 2             /* session timeout less heartbeat interval */
#endif
#ifndef S
#define S 1             /* clock skew */
#endif
#ifndef POISON
#define POISON 0        /* 1: a message that cannot be understood stands first in the log */
#endif
#ifndef PROPS
#define PROPS 895       /* 1 a, 4 c, 8 d, 16 e, 32 f, 64 dead letter once, 128 hand-over leaves no doubt, 256 g, 512 h; b is the end-state check */
#endif

/* rules: 1 = on */
#ifndef WRITE_AHEAD
#define WRITE_AHEAD 1   /* Submitting is committed before the POST */
#endif
#ifndef WINDOW
#define WINDOW 1        /* a POST begins at most W after a proof of ownership */
#endif
#ifndef FROM_SEND
#define FROM_SEND 1     /* ... counted from before that commit was sent; 0: from its answer */
#endif
#ifndef QMODE
#define QMODE 2         /* doubt waits from: 2 own init and own last POST; 1 stamp rewritten by every proof; 0 the submitted stamp */
#endif
#ifndef DOUBTFOR
#define DOUBTFOR 1      /* a restored doubt waits by the longer limits: own ones, and those of the process that wrote its intent */
#endif
#ifndef OWNSEND
#define OWNSEND 1       /* own lost POST: D after it was sent */
#endif
#ifndef SKEWP
#define SKEWP 0         /* QMODE 0, 1: how far the reader's wall clock may be ahead of the writer's */
#endif
#ifndef LBEGUN
#define LBEGUN 1        /* the look-up that concludes "not there" began after the wait; 0: was answered after it */
#endif
#ifndef NOWAIT
#define NOWAIT 0        /* 1: any look-up concludes */
#endif
#ifndef EXCL
#define EXCL 1          /* tasks of other requests are not adopted */
#endif
#ifndef MARGIN
#define MARGIN 1        /* startTimeAfter is submitted less the skew; 0: submitted */
#endif
#ifndef LOOKALL
#define LOOKALL 1       /* the look-up sees ended tasks too */
#endif
#ifndef LINGER
#define LINGER 1        /* after a deadline the replication stays taken until its task ended or is known not to be; 2: in memory only */
#endif
#ifndef HEADDL
#define HEADDL 1        /* a waiting request's deadline waits for its elders' outcomes */
#endif
#ifndef REOPEN
#define REOPEN 1        /* fenced but still assigned by the current generation: open anew; 2: without asking the group; 0: stay closed */
#endif
#ifndef ORD
#define ORD 0           /* opening: 0 init journal offset; 1 offset init journal; 2 journal init offset; 3 init offset journal */
#endif
#ifndef OPENPROOF
#define OPENPROOF 1     /* opening ends with a commit: refused means somebody opened after us. 0: no; 2: an idle owner proves itself now and then */
#endif
#ifndef OFFMODE
#define OFFMODE 0       /* offset: 0 in the transaction; 1 before it; 2 after it, apart */
#endif
#ifndef DEDUP
#define DEDUP 1
#endif
#ifndef FENCING
#define FENCING 1       /* an older epoch's commit is refused */
#endif
#ifndef UNKNOWN_REOPENS
#define UNKNOWN_REOPENS 1 /* a commit whose fate is unknown: open anew; 0: send it again */
#endif
#ifndef QUIESCE
#define QUIESCE 0       /* revoked: no new POST, and rejoin only when the ones in flight are answered and committed */
#endif
#ifndef TAKEBACK
#define TAKEBACK 0      /* ... and a Submitting whose POST has not begun goes back to Waiting */
#endif
#ifndef ACCRULE
#define ACCRULE 1       /* "not there" is concluded only under the account that the POST was sent with */
#endif
#ifndef ACCPOST
#define ACCPOST 1       /* a POST leaves only under the account that its intent names */
#endif
#ifndef AGAIN
#define AGAIN 1         /* a repeated POST that is refused is in doubt again; 2: any look-up after the refusal concludes; 0: its request ends */
#endif
#ifndef LETGO
#define LETGO 0         /* 1: a sync whose task another account would see releases its replication in the end (24 h after the deadline) */
#endif
#ifndef TOPICCHECK
#define TOPICCHECK 2    /* the cursor names the topic as it was opened: 2 compared at opening and now and then; 1 at opening; 0 never */
#endif
#ifndef JCHECK
#define JCHECK 1        /* a journal without a cursor is refused where the group has read */
#endif
/* what else may happen around it */
#ifndef ACC
#define ACC 0           /* 1: fault 64 replaces the site's account; each process logs in with the new one in its own time */
#endif
#ifndef TOPIC
#define TOPIC 0         /* 1: fault 128 replaces the requests topic by one that holds [a2 a1 a1] */
#endif
#ifndef JOURNAL
#define JOURNAL 0       /* 1: fault 256 empties the journal while no process has the partition open */
#endif
#ifndef CHKSPLIT
#define CHKSPLIT 0      /* 1: time may pass between the window's check and the send */
#endif
#ifndef CLOCKSTOP
#define CLOCKSTOP 0     /* 1: the monotonic clock stands still while a process is silent (virtual machine suspended) */
#endif
#ifndef PURGE
#define PURGE 0         /* 1: VCDA forgets ended tasks */
#endif
#ifndef FOREIGN
#define FOREIGN 0       /* 1: somebody else syncs replication A, once */
#endif
#ifndef RIDEMP
#define RIDEMP 0        /* 1: VCDA answers a repeated POST of one request with its first task */
#endif
#ifndef RLOOK
#define RLOOK 0         /* 1: tasks can be looked up by the request's own key */
#endif
#ifndef REFUSES
#define REFUSES 0       /* 1: VCDA refuses a POST of a request that has a task */
#endif
#ifndef LAG
#define LAG 0           /* ticks from a task's start until look-ups see it */
#endif
#ifndef R409
#define R409 0          /* 1: VCDA refuses a POST while the replication's task runs */
#endif

#ifndef CANCEL
#define CANCEL 0        /* the log ends with 1: a cancel of request C; 2: a release of it; 3: a cancel that ends whatever VCDA may have */
#endif
#ifndef C
#define C 0
#endif

#define NP (NREQ)
#define NT (NREQ+1+FOREIGN)
#define WAITS(more) (WAIT_W+WAIT_D+1+(more))
#define QW WAITS(MORE)  /* long enough for whoever waits */
#define QD (WAIT_D+1+MORE)
#define CAP (QW+SKEWP)
#define STAMPS (QMODE<2 || MARGIN==0)

/* processes */
#define DEAD 0
#define SILENT 1        /* stopped, or cut off from Kafka: no heartbeat, no Kafka step; may still talk to VCDA */
#define UP 2
/* a request, as a process sees it; the journal holds NONE WAITING DOUBT(=Submitting) RUNNING DONE LDOUBT LRUN */
#define NONE 0
#define WAITING 1
#define FRESH 2         /* Submitting, no POST of it under way */
#define INFLIGHT 3
#define DOUBT 4
#define RUNNING 5
#define DONE 6
#define LDOUBT 7        /* outcome given, its task in doubt: the replication stays taken */
#define LRUN 8          /* outcome given, its task runs: the replication stays taken */
#define CHECKED 9
/* a partition in a process */
#define CLOSED 0
#define O1 1
#define O2 2
#define OPEN 3
#define FENCED 4        /* refused, or a commit of unknown fate: nothing goes on here */
#define STOPPED 5       /* journal and topic don't belong together: refuses to work, and says so to an operator */
/* a transaction */
#define SENT 1
#define ACKED 2
#define REFUSED 3

#define X(p,r) ((p)*NREQ+(r))
#define o(p) (1-(p))
#define rep(r) ((r)==2)
#define NREC (NREQ+1+POISON+(CANCEL>0))

byte ps[2]; bit member[2], joined[2], pend[2], asg[2], rev[2], ep[2], dirty[2]; bit reb; byte gown = 0; byte sess[2];
byte pr[2], tx[2], pos[2], emit[2], win[2], wc[2], quiet[2], lk[2], lres[2]; bit dlp[2];
byte st[2*NREQ], tk[2*NREQ], ans[2*NREQ], own[2*NREQ];
byte jst[NREQ], jtk[NREQ], joff, out[NREQ], dlq;
byte preq[NP], page[NP], pown[NP];
byte tre[NT], tend[NT];   /* whose task; 0 running, 1 ended, 2 ended and forgotten */
byte nf = NF, ndl = NDL, nrej = NREJ, nfor = FOREIGN;
#if QMODE<2 || MARGIN==0
byte sage[NREQ], tdel[NT];
#endif
#if OFFMODE==2
byte cpos[2];
#endif
#if ACC
bit acc, pac[2];        /* the account that is valid now; the one of each process's session */
bit sac[2*NREQ], jac[NREQ], pacc[NP], tac[NT];   /* of a sync, in memory and in the journal; of a POST; of a task */
#define seen_by(p,k) (tac[k]==pac[p])
#define named(p,r) (sac[X(p,r)]==pac[p])
#define NAME(p,r) sac[X(p,r)]=pac[p];
#define WRITE_NAME(p,r) jac[r]=sac[X(p,r)];
#define WRITE_NO_NAME(r) jac[r]=0;
#define READ_NAME(p,r) sac[X(p,r)]=jac[r];
#define FORGET_NAME(x) sac[x]=0;
#else
#define seen_by(p,k) 1
#define named(p,r) 1
#define NAME(p,r)
#define WRITE_NAME(p,r)
#define WRITE_NO_NAME(r)
#define READ_NAME(p,r)
#define FORGET_NAME(x)
#endif
#if TOPIC
bit tgen, jgen, pgen[2];   /* which topic there is; which the cursor is of; which a process's position is in */
#define record(k) (tgen -> (k)==0 : recreq(k))
#define misplaced(p) (TOPICCHECK==2 && pgen[p]!=tgen)
#else
#define record(k) recreq(k)
#define misplaced(p) 0
#endif
#if JOURNAL
bit grp, jcur;          /* the group has read; the journal has a cursor */
#define EMPTY(p) if :: JCHECK && !jcur && grp -> pr[p]=STOPPED; forget(p); printf("P%d: the journal is empty, but the group has read: stopped\n", p) :: else fi;
#else
#define EMPTY(p)
#endif
#if NREJ || REFUSES || R409
bit again[2*NREQ], jagain[NREQ];   /* the POST is repeated: look-ups found no task of an earlier one */
bit refd[2*NREQ], jrefd[NREQ];     /* VCDA refused that one: in doubt is the task of an earlier one */
byte rej[2];            /* the outcomes that a process has not committed yet and that are rejections */
#define repeated(p,r) (AGAIN && again[X(p,r)])
#define refused(p,r) refd[X(p,r)]
#define REPEAT(p,r) again[X(p,r)]=1;
#define REFUSE(p,r) refd[X(p,r)]=1;
#define REJECT(p,r) rej[p]=rej[p]|(1<<r);
#define KEEP_REJ(p,x) rej[p]=x;
#define TRULY_REJECTED(p) if :: rej[p] & (1<<i) -> n=0; do :: n<NT -> assert(!(PROPS&512) || tre[n]!=i+1) /* h */; n++ :: else -> break od :: else fi;
#define WRITE_AGAIN(p,r) jagain[r]=again[X(p,r)]; jrefd[r]=refd[X(p,r)];
#define WRITE_NO_AGAIN(r) jagain[r]=0; jrefd[r]=0;
#define READ_AGAIN(p,r) again[X(p,r)]=jagain[r]; refd[X(p,r)]=jrefd[r];
#define FORGET_AGAIN(x) again[x]=0; refd[x]=0;
#else
#define repeated(p,r) 0
#define refused(p,r) 0
#define REPEAT(p,r)
#define REFUSE(p,r)
#define REJECT(p,r)
#define KEEP_REJ(p,x)
#define TRULY_REJECTED(p)
#define WRITE_AGAIN(p,r)
#define WRITE_NO_AGAIN(r)
#define READ_AGAIN(p,r)
#define FORGET_AGAIN(x)
#endif
#if MORE
bit by[2*NREQ], jby[NREQ], plong[NP];   /* the intent, or the POST, is of process 0 */
#define INTENT(p,r) by[X(p,r)]=!(p); dirty[p]=1;
#define WRITE_BY(p,r) jby[r]=by[X(p,r)];
#define WRITE_NO_BY(r) jby[r]=0;
#define READ_BY(p,r) by[X(p,r)]=jby[r];
#define FORGET_BY(x) by[x]=0;
#define FLIES_FROM(k,p) plong[k]=!(p);
#define limit(k) (D+(plong[k] -> MORE : 0))
#define own_more(p) ((p)==0 -> MORE : 0)
#define more(p,r) ((p)==0 || (DOUBTFOR && by[X(p,r)]) -> MORE : 0)
#else
#define INTENT(p,r)
#define WRITE_BY(p,r)
#define WRITE_NO_BY(r)
#define READ_BY(p,r)
#define FORGET_BY(x)
#define FLIES_FROM(k,p)
#define limit(k) D
#define own_more(p) 0
#define more(p,r) 0
#endif
#if LAG
byte vis[NT];           /* ticks since a task's start */
#define listed(k) (vis[k]>=LAG)
#define unlisted(k) (tre[k]!=0 && vis[k]<LAG)
#else
#define listed(k) 1
#define unlisted(k) 0
#endif
byte i, j, n, ch, b;   /* scratch: zero between steps */
#define Z i=0; j=0; n=0; ch=0; b=0

/* log: [bad] a1 a1 a2 [b1] [cancel] */
#define recreq(k) (CANCEL && (k)==NREC-1 -> 98 : ((k)<POISON -> 99 : ((k)-POISON<2 -> 0 : (k)-POISON-1)))
#define alive(p) (ps[p]!=DEAD)
#define up(p) (ps[p]==UP)
#define head(p,r) ((r)!=1 || st[X(p,0)]==DONE)
#define elders(p,r) ((r)!=1 || st[X(p,0)]==DONE || st[X(p,0)]==LDOUBT || st[X(p,0)]==LRUN)
#define can(p) (alive(p) && pr[p]==OPEN && tx[p]==0)
#define busy(p) (QUIESCE && rev[p])

#if QMODE==2
#define waited(p,r) (NOWAIT || (quiet[p]>=WAITS(more(p,r)) && (!OWNSEND || own[X(p,r)]>=WAIT_D+1+own_more(p))))
#else
#define waited(p,r) (NOWAIT || sage[r]+SKEWP>=QW)
#endif
#define excluded(p,r,k) (EXCL && (((r)!=0 && tk[X(p,0)]==(k)+1) || ((r)!=1 && tk[X(p,1)]==(k)+1)))
#define sees(p,r,k) (tre[k]!=0 && (tre[k]==9 -> !rep(r) : rep(tre[k]-1)==rep(r)) && (LOOKALL || !tend[k]) && tend[k]!=2 && listed(k) && seen_by(p,k) && (!RLOOK || tre[k]==(r)+1) && !excluded(p,r,k))
#if MARGIN==0
#define mustsee(p,r,k) (sees(p,r,k) && tre[k]==(r)+1 && tdel[k]>S)
#else
#define mustsee(p,r,k) (sees(p,r,k) && tre[k]==(r)+1)
#endif
#if NREQ==3
#define anysee(p,r) (mustsee(p,r,0)||mustsee(p,r,1)||mustsee(p,r,2)||mustsee(p,r,3))
#else
#define anysee(p,r) (mustsee(p,r,0)||mustsee(p,r,1)||mustsee(p,r,2))
#endif

#if CANCEL
bit cut[2], gone;       /* a process has cancelled request C, and that is not committed yet; committed: it has no task, and gets none */
#define AT_ONCE(p) (cut[p] && i==C)
#define GONE_FOR_GOOD(p) if :: cut[p] && i==C && CANCEL!=2 -> gone=1; n=0; do :: n<NT -> assert(!(PROPS&256) || tre[n]!=C+1) /* g */; n++ :: else -> break od :: else fi;
#define KEEP_CUT(p,x) cut[p]=x;
#define LEAVES(p,x) ((x)==INFLIGHT || (x)==DOUBT || (x)==RUNNING || (x)==CHECKED)
#define CANCELS(p) \
  n = st[X(p,C)]; \
  if :: n==WAITING || n==FRESH || (CANCEL>1 && LEAVES(p,n)) -> settle(p,C,DONE); emit[p]=emit[p]|(1<<C); cut[p]=1; printf("P%d: reads a cancel: request %d has ended\n", p, C) \
     :: CANCEL==2 && (n==LDOUBT || n==LRUN) -> settle(p,C,DONE); printf("P%d: reads a release: the replication of %d is free\n", p, C) \
     :: else -> printf("P%d: reads a cancel: request %d goes on\n", p, C) fi; \
  if :: st[X(p,C)]==DONE && lk[p]==C+1 -> lk[p]=0; lres[p]=0 :: else fi; calm(p)
#else
#define AT_ONCE(p) 0
#define GONE_FOR_GOOD(p)
#define KEEP_CUT(p,x)
#define CANCELS(p) skip
#define gone 0
#endif

inline forget(p) {      /* memory of the partition is dropped; POSTs under way go on without a reader */
  i = 0; do :: i < NREQ -> st[X(p,i)]=0; tk[X(p,i)]=0; ans[X(p,i)]=0; own[X(p,i)]=QD; FORGET_NAME(X(p,i)) FORGET_AGAIN(X(p,i)) FORGET_BY(X(p,i)) i++ :: else -> break od;
  i = 0; do :: i < NP -> if :: pown[i]==p+1 -> pown[i]=0 :: else fi; i++ :: else -> break od;
  tx[p]=0; pos[p]=0; emit[p]=0; dirty[p]=0; win[p]=W+1; wc[p]=0; quiet[p]=QW; lk[p]=0; lres[p]=0; dlp[p]=0; KEEP_CUT(p,0) KEEP_REJ(p,0)
#if OFFMODE==2
  cpos[p]=0;
#endif
}
inline orphan(p,r) { i = 0; do :: i < NP -> if :: pown[i]==p+1 && preq[i]==r+1 -> pown[i]=0 :: else fi; i++ :: else -> break od; ans[X(p,r)]=0 }

inline apply(p) {
  i = 0;
  do :: i < NREQ ->
      n = st[X(p,i)];
      if :: n==FRESH||n==INFLIGHT||n==CHECKED -> n = DOUBT :: else fi;
      if :: !WRITE_AHEAD && n==DOUBT -> n = WAITING :: else fi;
      if :: LINGER==2 && (n==LDOUBT||n==LRUN) -> n = DONE :: else fi;
#if QMODE<2 || MARGIN==0
      if :: n==DOUBT && (jst[i]<DOUBT || (QMODE==1 && st[X(p,i)]==FRESH)) -> sage[i]=wc[p] :: else fi;
#endif
      jst[i]=n; jtk[i]=tk[X(p,i)]; WRITE_NAME(p,i) WRITE_AGAIN(p,i) WRITE_BY(p,i)
      if :: jtk[i]!=0 -> assert(!(PROPS&16) || tre[jtk[i]-1]==i+1 || tre[jtk[i]-1]==0) /* e */ :: else fi;
      if :: emit[p] & (1<<i) ->
          if :: out[i]<2 -> out[i]++ :: else fi;
          printf("      -> outcome of %d visible\n", i);
          assert(!(PROPS&1) || out[i]==1);                         /* a */
          assert(!(PROPS&32) || i!=1 || out[0]>=1 || AT_ONCE(p))   /* f */
          GONE_FOR_GOOD(p)
          TRULY_REJECTED(p)
         :: else fi;
      i++
     :: else -> break od;
  if :: dlp[p] -> if :: dlq<2 -> dlq++ :: else fi; assert(!(PROPS&64) || dlq==1) :: else fi;
#if OFFMODE==0
  joff=pos[p];
#if TOPIC
  jgen=pgen[p];
#endif
#if JOURNAL
  jcur=1; if :: joff>0 -> grp=1 :: else fi;
#endif
#endif
}

inline restore(p) {
  i = 0; b = 0;
  do :: i < NREQ -> st[X(p,i)]=jst[i]; tk[X(p,i)]=jtk[i]; READ_NAME(p,i) READ_AGAIN(p,i) READ_BY(p,i) if :: jst[i]==DOUBT||jst[i]==LDOUBT -> b=1 :: else fi; i++ :: else -> break od;
  assert(!(PROPS&128) || !b);
  if :: !b && quiet[p]<QW && ORD!=2 -> quiet[p]=QW :: else fi
}
inline start(p) {
  ep[p]=1; if :: FENCING -> ep[o(p)]=0 :: else fi; tx[p]=0; quiet[p]=0;
#if ORD==2
  if :: st[X(p,0)]==DOUBT||st[X(p,1)]==DOUBT||st[X(p,0)]==LDOUBT||st[X(p,1)]==LDOUBT :: else -> quiet[p]=QW fi
#endif
}

/* --- the group --- */
#define GROUP(p) \
  :: d_step { ps[p]!=SILENT && !member[p] -> ps[p]=UP; member[p]=1; joined[p]=1; rev[p]=1; if :: !reb -> joined[o(p)]=0 :: else fi; reb=1; pend[0]=0; pend[1]=0; \
       if :: pr[p]>CLOSED -> printf("P%d finds itself out of the group, ", p) :: else fi; printf("P%d joins the group: rebalance\n", p); Z } \
  :: d_step { up(p) && member[p] && reb && !joined[p] && !rev[p] && QUIESCE -> rev[p]=1; printf("P%d: revoked, quiescing\n", p); Z } \
  :: d_step { up(p) && member[p] && reb && !joined[p] && (!QUIESCE || (rev[p] && (pr[p]!=OPEN || tx[p]==0 && !dirty[p]) && !(pr[p]==OPEN && (st[X(p,0)]==INFLIGHT || st[X(p,1)]==INFLIGHT || (TAKEBACK && (st[X(p,0)]==FRESH || st[X(p,1)]==FRESH)))))) -> \
       joined[p]=1; rev[p]=1; printf("P%d: revoked, joins again\n", p); Z } \
  :: d_step { reb && member[p] && joined[p] && (!member[o(p)] || joined[o(p)]) -> reb=0; gown=p; \
       pend[p]=1; pend[o(p)]=(member[o(p)] && (asg[o(p)] || pr[o(p)]!=CLOSED)); if :: pend[o(p)] :: else -> rev[o(p)]=0 fi; joined[0]=0; joined[1]=0; printf("group: the partition goes to P%d\n", p); Z } \
  :: d_step { up(p) && member[p] && pend[p] -> pend[p]=0; rev[p]=0; \
       if :: gown==p -> asg[p]=1; if :: pr[p]>=FENCED -> pr[p]=CLOSED; forget(p) :: else fi; \
               printf("P%d: assigned\n", p); if :: pr[p]==OPEN -> printf("      -> kept: goes on with the journal it has\n") :: else fi \
          :: else -> asg[p]=0; if :: pr[p]!=CLOSED -> pr[p]=CLOSED; forget(p); printf("P%d: lost, closes\n", p) :: else fi fi; Z } \
  :: d_step { member[p] && (ps[p]==DEAD || (ps[p]==SILENT && sess[p]>=K)) -> member[p]=0; joined[p]=0; pend[p]=0; sess[p]=0; pend[o(p)]=0; \
       if :: member[o(p)] -> if :: !reb -> joined[o(p)]=0; reb=1 :: else fi :: else -> reb=0 fi; gown=2; printf("group: P%d expires\n", p); Z } \
  :: d_step { ps[p]==SILENT -> ps[p]=UP; sess[p]=0; printf("P%d wakes up\n", p); Z } \
  :: d_step { nf>0 && (FM&2) && up(p) -> nf--; ps[p]=SILENT; printf("FAULT: P%d is stopped (or cut off from Kafka)\n", p); Z } \
  :: d_step { nf>0 && (FM&1) && alive(p) && !(pr[p]==CLOSED && !asg[p] && !member[p]) -> nf--; ps[p]=DEAD; sess[p]=0; asg[p]=0; rev[p]=0; pend[p]=0; ep[p]=0; pr[p]=CLOSED; forget(p); printf("FAULT: P%d crashes\n", p); Z } \
  :: d_step { nf>0 && (FM&32) && ep[p] && FENCING && pr[p]==OPEN -> nf--; ep[p]=0; printf("FAULT: the coordinator bumps P%d's epoch (transaction time-out, or a late init)\n", p); Z }

/* --- opening --- */
#define may(p) (up(p) && asg[p])
#define OPENED(p) if :: OPENPROOF==1 && pr[p]==OPEN -> dirty[p]=1 :: else fi;
#define OPENING(p) \
  :: d_step { may(p) && ((pr[p]==CLOSED && (ORD==0||ORD==3)) || (pr[p]==O1 && (ORD==1||ORD==2))) -> start(p); pr[p]=pr[p]+1; \
       printf("P%d: init done, elders fenced\n", p); if :: gown!=p -> printf("      -> though it is no longer the owner\n") :: else fi; Z } \
  :: d_step { may(p) && ((pr[p]==O1 && ORD==0) || (pr[p]==O2 && (ORD==1||ORD==3)) || (pr[p]==CLOSED && ORD==2)) -> restore(p); pr[p]=pr[p]+1; OPENED(p) \
       printf("P%d: journal read: %d %d\n", p, st[X(p,0)], st[X(p,1)]); Z } \
  :: d_step { may(p) && ((pr[p]==O2 && (ORD==0||ORD==2)) || (pr[p]==O1 && ORD==3) || (pr[p]==CLOSED && ORD==1)) -> pos[p]=joff; pr[p]=pr[p]+1; OPENED(p) printf("P%d: offset read: %d\n", p, joff); CHECKED_CURSOR(p) EMPTY(p) Z } \
  :: d_step { REOPEN && pr[p]==FENCED && may(p) && !rev[p] && (REOPEN==2 || (member[p] && gown==p && !reb)) -> pr[p]=CLOSED; forget(p); printf("P%d: still the owner: opens anew\n", p); Z }

/* --- consuming and committing --- */
#if TOPIC
#define MISPLACED(p) :: d_step { up(p) && pr[p]==OPEN && tx[p]!=SENT && misplaced(p) -> pr[p]=FENCED; forget(p); printf("P%d: compares: the topic is another than it opened, so it opens again\n", p); Z }
#define CHECKED_CURSOR(p) if :: TOPICCHECK && joff>0 && jgen!=tgen -> pr[p]=STOPPED; forget(p); printf("P%d: the cursor is of another topic: stopped\n", p) :: else -> pgen[p]=tgen fi;
#else
#define MISPLACED(p)
#define CHECKED_CURSOR(p)
#endif
#if OFFMODE==1
#define EARLY(p) joff=pos[p];
#else
#define EARLY(p)
#endif
#if OFFMODE==2
#define LATER(p) cpos[p]=pos[p];
#define OFFSETS(p) :: d_step { up(p) && pr[p]==OPEN && cpos[p]>joff -> joff=cpos[p]; printf("P%d: offset %d committed apart\n", p, joff); Z }
#else
#define LATER(p)
#define OFFSETS(p)
#endif
#define startable(p) (!busy(p) && (st[X(p,0)]==WAITING || (st[X(p,1)]==WAITING && head(p,1)) || st[X(p,NREQ-1)]==WAITING && head(p,NREQ-1)))
#define posts(x) ((x)==FRESH || (x)==DOUBT || (x)==CHECKED)
#define timed(p) (WINDOW && (posts(st[X(p,0)]) || posts(st[X(p,1)]) || posts(st[X(p,NREQ-1)])))   /* else the window's age matters to nobody */
#define needproof(p) (WINDOW && win[p]>W && (st[X(p,0)]==FRESH || st[X(p,1)]==FRESH || (NREQ==3 && st[X(p,NREQ-1)]==FRESH)))
#define COMMITS(p) \
  :: d_step { can(p) && up(p) && !busy(p) && pos[p]<NREC -> dirty[p]=1; b=1; do :: pos[p]<NREC && b -> n=record(pos[p]); pos[p]++; b=(pos[p]>POISON+1 && pos[p]<NREC-(CANCEL>0)); \
       if :: n==99 -> dlp[p]=1; printf("P%d: reads a bad message\n", p) \
          :: n==98 -> CANCELS(p); b=0 \
          :: n<98 && (st[X(p,n)]==NONE || (!DEDUP && st[X(p,n)]==DONE)) -> st[X(p,n)]=WAITING; printf("P%d: reads request %d\n", p, n) \
          :: else -> printf("P%d: reads a duplicate of %d\n", p, n) fi :: else -> break od; EARLY(p) Z } \
  :: d_step { can(p) && up(p) && (dirty[p] || (needproof(p) && !busy(p)) || (OPENPROOF==2 && !ep[p]) || startable(p)) -> tx[p]=SENT; \
       b=(dirty[p]||startable(p)); i=0; do :: i<NREQ -> if :: !busy(p) && st[X(p,i)]==WAITING && head(p,i) -> st[X(p,i)]=FRESH; NAME(p,i) INTENT(p,i) printf("P%d: request %d is to be submitted\n", p, i) :: else fi; i++ :: else -> break od; \
       wc[p]=(timed(p) -> 0 : W+1); printf("P%d: sends a commit\n", p); if :: b :: else -> printf("      -> only to prove ownership\n") fi; Z } \
  :: d_step { tx[p]==SENT && (pr[p]==OPEN || pr[p]==FENCED) -> \
       if :: ep[p] -> tx[p]=ACKED; printf("broker: P%d's commit stands\n", p); apply(p) :: else -> tx[p]=REFUSED; printf("broker: P%d's commit refused (fenced)\n", p) fi; Z } \
  :: d_step { up(p) && pr[p]==OPEN && tx[p]==ACKED -> tx[p]=0; dirty[p]=0; emit[p]=0; KEEP_CUT(p,0) KEEP_REJ(p,0) dlp[p]=0; win[p]=(FROM_SEND || !timed(p) -> wc[p] : 0); wc[p]=0; LATER(p) printf("P%d: commit answered\n", p); Z } \
  :: d_step { up(p) && pr[p]==OPEN && tx[p]==REFUSED -> pr[p]=FENCED; forget(p); printf("P%d: fenced\n", p); Z } \
  :: d_step { nf>0 && (FM&16) && up(p) && pr[p]==OPEN && (tx[p]==SENT || tx[p]==ACKED) -> nf--; printf("FAULT: P%d never learns its commit's fate\n", p); \
       if :: UNKNOWN_REOPENS -> pr[p]=FENCED :: else -> tx[p]=0; wc[p]=0 fi; Z } \
  OFFSETS(p) MISPLACED(p)

/* --- one sync --- */
#if CHKSPLIT
#define POSTING(p,r) \
  :: d_step { can(p) && st[X(p,r)]==FRESH && !dirty[p] && !busy(p) && (!ACCPOST || named(p,r)) && (!WINDOW || win[p]<=W) -> st[X(p,r)]=CHECKED; printf("P%d: window checked for %d\n", p, r); Z } \
  :: d_step { can(p) && st[X(p,r)]==CHECKED -> send(p,r); Z }
#else
#define POSTING(p,r) :: d_step { can(p) && st[X(p,r)]==FRESH && !dirty[p] && !busy(p) && (!ACCPOST || named(p,r)) && (!WINDOW || win[p]<=W) -> send(p,r); Z }
#endif
#if ACC
#define SENT_BY(k,p) pacc[k]=pac[p];
#define MADE_BY(k) tac[j]=pacc[k];
#define ACCOUNT(p) \
  :: d_step { alive(p) && pac[p]!=acc -> pac[p]=acc; printf("P%d: logs in with the account that is valid now\n", p); Z }
#define RENAME(p,r) \
  :: d_step { ACCPOST && can(p) && st[X(p,r)]==FRESH && !dirty[p] && !busy(p) && !named(p,r) -> NAME(p,r) dirty[p]=1; printf("P%d: the intent of %d gets the new account\n", p, r); Z } \
  :: d_step { LETGO && can(p) && ((st[X(p,r)]==LDOUBT && !named(p,r)) || (st[X(p,r)]==LRUN && tk[X(p,r)]!=0 && !seen_by(p,tk[X(p,r)]-1))) -> \
       st[X(p,r)]=DONE; own[X(p,r)]=QD; dirty[p]=1; printf("P%d: a day after %d's deadline, its task not seen: the replication is free\n", p, r); Z }
#else
#define SENT_BY(k,p)
#define MADE_BY(k)
#define ACCOUNT(p)
#define RENAME(p,r)
#endif
inline send(p,r) {
  i = 0; do :: i<NP && preq[i]!=0 -> i++ :: else -> break od;
  if :: i<NP -> preq[i]=r+1; page[i]=0; pown[i]=p+1; SENT_BY(i,p) FLIES_FROM(i,p) :: else fi; NAME(p,r)
  st[X(p,r)]=INFLIGHT; own[X(p,r)]=0; printf("P%d: POSTs request %d\n", p, r); if :: ep[p] :: else -> printf("      -> as a zombie\n") fi
}
inline settle(p,r,s) { st[X(p,r)]=s; own[X(p,r)]=QD; FORGET_AGAIN(X(p,r)) orphan(p,r) }
inline deadline(p,r) {
  n = st[X(p,r)]; orphan(p,r); if :: NDL<9 -> ndl-- :: else fi; emit[p]=emit[p]|(1<<r); dirty[p]=1;
  if :: LINGER && (n==INFLIGHT || n==DOUBT || n==CHECKED) -> st[X(p,r)]=LDOUBT :: LINGER && n==RUNNING -> st[X(p,r)]=LRUN :: else -> st[X(p,r)]=DONE; own[X(p,r)]=QD fi;
  if :: lk[p]==r+1 -> lk[p]=0; lres[p]=0 :: else fi;
  printf("P%d: deadline of %d: failed\n", p, r)
}
#define indoubt(p,r) (st[X(p,r)]==DOUBT||st[X(p,r)]==LDOUBT)
inline adopt(p,r,k) {
  dirty[p]=1; NAME(p,r) tk[X(p,r)]=k; own[X(p,r)]=QD; FORGET_AGAIN(X(p,r)) printf("P%d: adopts task %d for %d (it was made for %d)\n", p, k, r, tre[k-1]-1);
  if :: st[X(p,r)]==DOUBT -> st[X(p,r)]=RUNNING :: else -> st[X(p,r)]=LRUN fi; calm(p)
}
inline conclude(p,r) {
  own[X(p,r)]=QD; NAME(p,r)
  if :: st[X(p,r)]==DOUBT && refused(p,r) -> settle(p,r,DONE); emit[p]=emit[p]|(1<<r); REJECT(p,r) dirty[p]=1; printf("P%d: looked, concludes: no task of an earlier POST of %d; it was rejected\n", p, r)
     :: st[X(p,r)]==DOUBT && !refused(p,r) -> st[X(p,r)]=FRESH; REPEAT(p,r) INTENT(p,r) if :: QMODE==1 -> win[p]=W+1 :: else fi; printf("P%d: looked, concludes: no task for %d; will POST again\n", p, r)
     :: else -> st[X(p,r)]=DONE; dirty[p]=1; printf("P%d: looked, concludes: no task for %d; the replication is free\n", p, r) fi; calm(p)
}
inline calm(p) { if :: indoubt(p,0) || indoubt(p,1) || indoubt(p,NREQ-1) :: else -> quiet[p]=QW fi }
#if LBEGUN
#define FOUND(p,r,k) :: d_step { can(p) && indoubt(p,r) && sees(p,r,k) -> adopt(p,r,k+1); Z }
#define LOOKS(p,r) :: d_step { can(p) && indoubt(p,r) && !anysee(p,r) && waited(p,r) && (!ACCRULE || named(p,r)) -> conclude(p,r); Z }
#else
#define FOUND(p,r,k) :: d_step { can(p) && lk[p]==0 && indoubt(p,r) && sees(p,r,k) -> lk[p]=r+1; lres[p]=k+1; printf("P%d: looks for %d's task: sees task %d (made for %d)\n", p, r, k+1, tre[k]-1); Z }
#define LOOKS(p,r) \
  :: d_step { can(p) && lk[p]==0 && indoubt(p,r) && !anysee(p,r) -> lk[p]=r+1; lres[p]=0; printf("P%d: looks for %d's task: sees none\n", p, r); Z } \
  :: d_step { can(p) && lk[p]==r+1 && lres[p]!=0 -> n=lres[p]; lk[p]=0; lres[p]=0; if :: indoubt(p,r) && !excluded(p,r,n-1) -> adopt(p,r,n) :: else fi; Z } \
  :: d_step { can(p) && lk[p]==r+1 && lres[p]==0 -> lk[p]=0; if :: waited(p,r) && indoubt(p,r) -> conclude(p,r) :: else fi; Z }
#endif
#if NREQ==3 || FOREIGN
#define FOUND3(p,r) FOUND(p,r,3)
#else
#define FOUND3(p,r)
#endif
#define SYNC(p,r) \
  :: d_step { TAKEBACK && can(p) && rev[p] && st[X(p,r)]==FRESH -> st[X(p,r)]=WAITING; dirty[p]=1; printf("P%d: takes request %d back to waiting\n", p, r); Z } \
  POSTING(p,r) RENAME(p,r) \
  :: d_step { can(p) && st[X(p,r)]==INFLIGHT && ans[X(p,r)]!=0 -> n=ans[X(p,r)]; dirty[p]=1; \
       if :: n==99 && repeated(p,r) -> orphan(p,r); st[X(p,r)]=DOUBT; own[X(p,r)]=(AGAIN==2 -> QD : 0); REFUSE(p,r) printf("P%d: the repeated POST of %d was refused: in doubt again\n", p, r) \
          :: n==99 && !repeated(p,r) -> settle(p,r,DONE); emit[p]=emit[p]|(1<<r); REJECT(p,r) printf("P%d: request %d was rejected\n", p, r) \
          :: else -> tk[X(p,r)]=n; settle(p,r,RUNNING); printf("P%d: 202 for %d, task %d\n", p, r, n) fi; Z } \
  :: d_step { can(p) && st[X(p,r)]==INFLIGHT && ((nf>0 && (FM&8)) || !pending(p,r)) -> if :: pending(p,r) -> nf--; printf("FAULT: ") :: else fi; \
       orphan(p,r); st[X(p,r)]=DOUBT; printf("P%d: no answer to the POST of %d: in doubt\n", p, r); Z } \
  FOUND(p,r,0) FOUND(p,r,1) FOUND(p,r,2) FOUND3(p,r) \
  LOOKS(p,r) \
  :: d_step { can(p) && (st[X(p,r)]==RUNNING||st[X(p,r)]==LRUN) && tk[X(p,r)]!=0 && seen_by(p,tk[X(p,r)]-1) && (tre[tk[X(p,r)]-1]==0 || tend[tk[X(p,r)]-1]) -> dirty[p]=1; \
       if :: st[X(p,r)]==RUNNING -> emit[p]=emit[p]|(1<<r) :: else fi; st[X(p,r)]=DONE; printf("P%d: task of %d has ended\n", p, r); Z } \
  :: d_step { ndl>0 && can(p) && up(p) && st[X(p,r)]>=WAITING && (st[X(p,r)]<=RUNNING || st[X(p,r)]==CHECKED) && (st[X(p,r)]!=WAITING || !HEADDL || elders(p,r)) -> deadline(p,r); Z }
#if NREQ==3
#define pending(p,r) (ans[X(p,r)]!=0 || (preq[0]==(r)+1&&pown[0]==(p)+1) || (preq[1]==(r)+1&&pown[1]==(p)+1) || (preq[2]==(r)+1&&pown[2]==(p)+1))
#define SYNCS(p) SYNC(p,0) SYNC(p,1) SYNC(p,2)
#else
#define pending(p,r) (ans[X(p,r)]!=0 || (preq[0]==(r)+1&&pown[0]==(p)+1) || (preq[1]==(r)+1&&pown[1]==(p)+1))
#define SYNCS(p) SYNC(p,0) SYNC(p,1)
#endif

/* --- VCDA and the network --- */
inline answer(k,v) { if :: pown[k]!=0 -> ans[X(pown[k]-1, preq[k]-1)]=v :: else fi; preq[k]=0; page[k]=0; pown[k]=0 }
inline create(k) {
  ch=0; n=0; j=NT; i=0;
  do :: i<NT ->
      if :: tre[i]==preq[k] -> ch=1; n=i+1
         :: tre[i]==0 && j==NT -> j=i
         :: tre[i]!=0 && tre[i]!=9 && tre[i]!=preq[k] && rep(tre[i]-1)==rep(preq[k]-1) && !tend[i] -> b=1
         :: else fi;
      if :: tre[i]==preq[k] && !tend[i] -> b=1 :: else fi;
      i++ :: else -> break od;
}
#define NET(k) \
  :: d_step { preq[k]!=0 -> b=0; create(k); \
       if :: RIDEMP && ch -> printf("VCDA: knows request %d: answers with its task\n", preq[k]-1); answer(k,n) \
          :: REFUSES && ch -> printf("VCDA: has a task for request %d, refuses\n", preq[k]-1); answer(k,99) \
          :: R409 && b && !(RIDEMP && ch) -> printf("VCDA: busy, refuses\n"); answer(k,99) \
          :: else -> printf("VCDA: task %d starts for request %d\n", j+1, preq[k]-1); \
             assert(!(PROPS&4) || !ch);   /* c */ \
             assert(!(PROPS&256) || !gone || preq[k]!=C+1);   /* g */ \
             assert(!(PROPS&8) || !b);    /* d */ \
             if :: j<NT -> tre[j]=preq[k]; tend[j]=0; SETDEL(k) MADE_BY(k) answer(k,j+1) :: else -> answer(k,0) fi fi; Z } \
  :: d_step { nrej>0 && preq[k]!=0 -> nrej--; printf("VCDA: refuses request %d for good\n", preq[k]-1); answer(k,99); Z } \
  :: d_step { nf>0 && (FM&4) && preq[k]!=0 -> nf--; printf("FAULT: a POST of %d is lost\n", preq[k]-1); preq[k]=0; page[k]=0; pown[k]=0; Z }
#if QMODE<2 || MARGIN==0
#define SETDEL(k) tdel[j]=sage[preq[k]-1];
#else
#define SETDEL(k)
#endif
#define TASK(k) \
  :: d_step { tre[k]!=0 && !tend[k] -> tend[k]=1; printf("VCDA: task %d ends\n", k+1); Z } \
  :: d_step { PURGE && tre[k]!=0 && tend[k]==1 -> tend[k]=2; printf("VCDA: forgets task %d\n", k+1); Z }

/* --- time --- */
#define late (!DUNB && ((preq[0]!=0 && page[0]>=limit(0)) || (preq[1]!=0 && page[1]>=limit(1)) || (NREQ==3 && preq[NP-1]!=0 && page[NP-1]>=limit(NP-1))))
inline older(v,cap) { if :: v<cap -> v++; ch=1 :: else fi }
inline tick() {
  ch=0; i=0;
  do :: i<2 ->
      if :: ps[i]==SILENT && member[i] -> older(sess[i],K) :: else fi;
      if :: pr[i]==OPEN && tx[i]!=0 && WINDOW && !(CLOCKSTOP && ps[i]==SILENT) -> older(wc[i],W+1) :: else fi;
      if :: pr[i]==OPEN && WINDOW && !(CLOCKSTOP && ps[i]==SILENT) -> older(win[i],W+1) :: else fi;
      if :: pr[i]!=CLOSED && QMODE==2 -> older(quiet[i],QW) :: else fi;
      i++ :: else -> break od;
  i=0; do :: i<2*NREQ -> if :: QMODE==2 && (st[i]==INFLIGHT||st[i]==DOUBT||st[i]==LDOUBT) -> older(own[i],QD) :: else fi; i++ :: else -> break od;
  i=0; do :: i<NP -> if :: preq[i]!=0 && !DUNB -> older(page[i],limit(i)) :: else fi; i++ :: else -> break od;
#if LAG
  i=0; do :: i<NT -> if :: tre[i]!=0 -> older(vis[i],LAG) :: else fi; i++ :: else -> break od;
#endif
#if QMODE<2 || MARGIN==0
  i=0; do :: i<NREQ -> if :: jst[i]==DOUBT || jst[i]==LDOUBT -> older(sage[i],CAP) :: else fi; i++ :: else -> break od;
#endif
}
/* a tick that changes nothing is no step: says whether any age would move */
#define moves(p) ((ps[p]==SILENT && member[p] && sess[p]<K) || (pr[p]==OPEN && WINDOW && !(CLOCKSTOP && ps[p]==SILENT) && (win[p]<=W || (tx[p]!=0 && wc[p]<=W))) \
   || (QMODE==2 && ((pr[p]!=CLOSED && quiet[p]<QW) || ageing(p,0) || ageing(p,1) || ageing(p,NREQ-1))))
#define ageing(p,r) (own[X(p,r)]<QD && (st[X(p,r)]==INFLIGHT||st[X(p,r)]==DOUBT||st[X(p,r)]==LDOUBT))
#if QMODE<2 || MARGIN==0
#define stamps(r) ((jst[r]==DOUBT||jst[r]==LDOUBT) && sage[r]<CAP)
#else
#define stamps(r) 0
#endif
#define flies(k) (!DUNB && preq[k]!=0 && page[k]<limit(k))

active proctype Model() {
  d_step {
    ps[0]=UP; ps[1]=UP; member[0]=1; asg[0]=1; ep[0]=1; pr[0]=OPEN; win[0]=W+1; win[1]=W+1; quiet[0]=QW; quiet[1]=QW;
    i=0; do :: i<2*NREQ -> own[i]=QD; i++ :: else -> break od; Z }
  do
  GROUP(0) GROUP(1)
  OPENING(0) OPENING(1)
  COMMITS(0) COMMITS(1)
  SYNCS(0) SYNCS(1)
  ACCOUNT(0) ACCOUNT(1)
  NET(0) NET(1)
  TASK(0) TASK(1) TASK(2)
#if NREQ==3
  NET(2) TASK(3)
#endif
#if ACC
  :: d_step { nf>0 && (FM&64) -> nf--; acc=!acc; printf("FAULT: the site's account is replaced\n"); Z }
#endif
#if TOPIC
  :: d_step { nf>0 && (FM&128) && !tgen -> nf--; tgen=1; printf("FAULT: the requests topic is replaced by another of its name\n"); Z }
#endif
#if JOURNAL
  :: d_step { nf>0 && (FM&256) && jcur && pr[0]!=OPEN && pr[1]!=OPEN -> nf--; jcur=0; joff=0; \
       i=0; do :: i<NREQ -> jst[i]=0; jtk[i]=0; WRITE_NO_NAME(i) WRITE_NO_AGAIN(i) WRITE_NO_BY(i) i++ :: else -> break od; printf("FAULT: the journal is emptied\n"); Z }
#endif
#if TOPIC || JOURNAL
  :: pr[0]==STOPPED || pr[1]==STOPPED -> break   /* an operator reads why, and acts */
#endif
#if FOREIGN
  :: d_step { nfor>0 && tre[NT-1]==0 -> nfor--; tre[NT-1]=9; printf("somebody else starts a sync of A: task %d\n", NT); Z }
  :: d_step { tre[NT-1]==9 && !tend[NT-1] -> tend[NT-1]=1; printf("that sync ends\n"); Z }
#endif
  :: d_step { !late && (moves(0) || moves(1) || stamps(0) || stamps(1) || stamps(NREQ-1) || flies(0) || flies(1) || flies(NP-1) || unlisted(0) || unlisted(1) || unlisted(2)) -> tick(); printf("(time passes)\n"); Z }
  :: out[0]>=1 && out[1]>=1 && out[NREQ-1]>=1 -> break
  od
}
